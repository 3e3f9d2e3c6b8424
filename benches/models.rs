//! Whole networks: ResNet-50 and MobileNetV2 forward, and a step of training of the small network of `digits`.
//!
//! `benches/peers/python/networks.py` runs this program beside other libraries: with `--measure NETWORK`, it answers each line
//! `BATCH MANNER SECONDS` with the time of a call (0 is NCHW, 1 is NHWC, 2 the same with `Algorithm::Winograd4`, 3 the same
//! with blocks as chains), and with `--export NETWORK BATCH FILE` it writes weights, images and scores, all `f32`.
//! `--profile NETWORK BATCH MANNER`, or `--profile digits BATCH`, says where the time goes, in as many threads as
//! `RAYON_NUM_THREADS` says.

mod support {
    pub mod digits;
    #[path = "../../examples/support/measure.rs"]
    pub mod measure;
    pub mod network;
}

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use rayon::ThreadPoolBuilder;
use support::digits::Training;
use support::measure;
use support::network::{Manner, Network, mobilenet_v2, resnet50};
use tilewise::conv::Algorithm;

type Build = fn(usize, Manner) -> tilewise::Result<Network>;

const NETWORKS: [(&str, Build); 2] = [("resnet50", resnet50), ("mobilenet_v2", mobilenet_v2)];
const TRAINING: &str = "digits";

fn network(name: &str) -> Result<Build, Box<dyn Error>> {
    let found = NETWORKS.iter().find(|(other, _)| *other == name);
    Ok(found.ok_or_else(|| format!("there is no network {name}"))?.1)
}

/// The manner of a number, as [`main`] has them.
fn manner(number: usize) -> Manner {
    let algorithm = if number == 2 { Algorithm::Winograd4 } else { Algorithm::Auto };
    Manner { channels_last: number > 0, algorithm, chained: number == 3 }
}

fn prepare<'w>(name: &str, batch: usize, manner: Manner) -> Result<measure::Work<'w>, Box<dyn Error>> {
    if name == TRAINING {
        let mut training = Training::new(batch)?;
        return Ok(Box::new(move || {
            black_box(training.step()?);
            Ok(())
        }));
    }
    let mut network = network(name)?(batch, manner)?;
    Ok(Box::new(move || {
        black_box(network.run()?);
        Ok(())
    }))
}

fn export(name: &str, batch: usize, file: &str) -> Result<(), Box<dyn Error>> {
    let mut network = network(name)?(batch, manner(0))?;
    let mut bytes: Vec<u8> =
        network.numbers.iter().chain(network.images()).flat_map(|x| x.to_le_bytes()).collect();
    bytes.extend(network.run()?.iter().flat_map(|x| x.to_le_bytes()));
    Ok(std::fs::write(file, bytes)?)
}

fn bench(c: &mut Criterion) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in if all > 1 { vec![1, all] } else { vec![1] } {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let mut group = c.benchmark_group(format!("networks, {threads} thread(s)"));
        group.sample_size(10);
        let networks = NETWORKS.iter().flat_map(|&(name, _)| [(name, 1), (name, 8)]);
        for (name, batch) in networks.chain([(TRAINING, 64)]) {
            group.throughput(Throughput::Elements(batch as u64));
            for (number, what) in ["NCHW", "NHWC", "NHWC, Winograd4", "NHWC, chains"].into_iter().enumerate()
            {
                let other =
                    [(2, "resnet50"), (3, "mobilenet_v2")].iter().any(|&(n, of)| n == number && of != name);
                if name == TRAINING && number > 0 || other {
                    continue;
                }
                group.bench_function(format!("{name} batch {batch} {what}"), |bencher| {
                    pool.install(|| {
                        let mut work = prepare(name, batch, manner(number)).expect("memory");
                        bencher.iter(|| work().expect("it fits"));
                    });
                });
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--measure", name] => {
            let pool = ThreadPoolBuilder::new().build()?;
            pool.install(|| {
                measure::serve(|batch, number| prepare(name, batch, manner(number)))
                    .map_err(|e| e.to_string())
            })?;
        }
        ["--export", name, batch, file] => export(name, batch.parse()?, file)?,
        ["--profile", TRAINING, batch] => {
            let mut training = Training::new(batch.parse()?)?;
            let mut best: Vec<(String, f64)> = Vec::new();
            for _ in 0..20 {
                let (mut at, mut last) = (0, Instant::now());
                training.step_in_laps(&mut |what| {
                    let seconds = last.elapsed().as_secs_f64();
                    match best.get_mut(at) {
                        Some(lap) => lap.1 = lap.1.min(seconds),
                        None => best.push((what.to_owned(), seconds)),
                    }
                    (at, last) = (at + 1, Instant::now());
                })?;
            }
            best.iter().for_each(|(what, seconds)| println!("{what:24} {:8.3} ms", 1e3 * seconds));
        }
        ["--profile", name, batch, number] => {
            let pool = ThreadPoolBuilder::new().build()?;
            let mut network = network(name)?(batch.parse()?, manner(number.parse()?))?;
            let kinds = pool.install(|| network.profile(15))?;
            let total: f64 = kinds.iter().map(|kind| kind.3).sum();
            for (what, count, work, seconds) in kinds {
                let (rate, share) = (2e-9 * work / seconds, 100.0 * seconds / total);
                println!("{what}  {count} x  {:8.3} ms  {share:5.1} %  {rate:6.1} GFLOP/s", 1e3 * seconds);
            }
            println!("{:.3} ms", 1e3 * total);
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            bench(&mut criterion);
            criterion.final_summary();
        }
    }
    Ok(())
}
