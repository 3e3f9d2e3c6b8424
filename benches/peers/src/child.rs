//! The process that measures, for one number of threads: it prints records, and nothing else, on standard output.

use crate::measure::{Contestant, busy, interleave};
use crate::parent::Task;
use crate::peak::{Memory, best_isa, fma_peak_f32, fma_peak_f64};
use crate::peer::{Peer, Scalar, TILEWISE};
use crate::problem::Problem;
use crate::record::{self, Failure, Measured, Record};
use crate::workload::{Dtype, Layout, Workload};

/// What this process calls itself in its records.
const PROCESS: &str = "rust";

/// How often the machine's peaks are measured: before so many workloads, and at the end.
const PEAK_EVERY: usize = 8;

pub fn run(task: &Task) {
    let (peers_f32, peers_f64) = (chosen::<f32>(task), chosen::<f64>(task));
    let isa = if task.avx2 { "avx2" } else { best_isa() };
    let mut peaks = Peaks::new(isa, task.threads);
    peaks.measure();
    introduce(task, &peers_f32);
    for (index, workload) in task.workloads.iter().enumerate() {
        if index % PEAK_EVERY == PEAK_EVERY - 1 {
            peaks.measure();
        }
        match workload.dtype {
            Dtype::F32 => compare(task, workload, &peers_f32),
            Dtype::F64 => compare(task, workload, &peers_f64),
        }
    }
    peaks.measure();
    print(Record::Peak(peaks.record()));
}

fn chosen<T: Scalar>(task: &Task) -> Vec<Box<dyn Peer<T>>> {
    let mut peers = T::peers(task.threads);
    peers.retain(|peer| {
        let name = peer.name();
        name == TILEWISE || task.peers.is_empty() || task.peers.iter().any(|peer| peer == name)
    });
    peers
}

/// Says what each peer is, and how many threads it really keeps at work.
fn introduce(task: &Task, peers: &[Box<dyn Peer<f32>>]) {
    let problem = Problem::new(&Workload {
        name: String::new(),
        dtype: Dtype::F32,
        m: 1024,
        n: 1024,
        k: 1024,
        layout: Layout::Nn,
        prepacked: false,
        batch: 1,
        gram: false,
    });
    let mut c = problem.output();
    for peer in peers {
        let Some(mut product) = peer.prepare(&problem) else { continue };
        print(Record::Peer(record::Peer {
            process: PROCESS.into(),
            threads: task.threads,
            peer: peer.name().into(),
            about: peer.about(),
            busy: busy(&mut *product, &mut c, task.plan),
        }));
    }
}

fn compare<T: Scalar>(task: &Task, workload: &Workload, peers: &[Box<dyn Peer<T>>]) {
    let problem = Problem::<T>::new(workload);
    let mut c = problem.output();
    let mut expected = None;
    let (mut names, mut contestants) = (Vec::new(), Vec::new());
    // Tilewise comes first, and is what the others' results are compared with.
    for peer in peers {
        let Some(mut product) = peer.prepare(&problem) else { continue };
        c.fill(T::from_f64(f64::NAN));
        product.run(&mut c);
        product.complete(&mut c);
        if let Err(why) = problem.check(&c, expected.as_deref()) {
            print(Record::Failure(Failure {
                process: PROCESS.into(),
                threads: task.threads,
                workload: workload.name.clone(),
                peer: peer.name().into(),
                why,
            }));
            continue;
        }
        if peer.name() == TILEWISE {
            expected = Some(c.clone());
        }
        names.push(peer.name());
        contestants.push(Contestant::new(product, &mut c, task.plan));
    }
    interleave(&mut contestants, &mut c, task.plan);
    for (peer, contestant) in names.into_iter().zip(contestants) {
        let (median, best) = contestant.result();
        print(Record::Result(Measured {
            process: PROCESS.into(),
            threads: task.threads,
            workload: workload.name.clone(),
            peer: peer.into(),
            median,
            best,
            gflops: 0.0,
            of_peak: 0.0,
        }));
    }
}

fn print(record: Record) {
    println!("{}", serde_json::to_string(&record).expect("a record is plain data"));
}

/// Readings of what the machine can do at most, which drifts.
struct Peaks {
    isa: &'static str,
    threads: usize,
    memory: [Memory; 2],
    /// In the order of the fields of a record.
    readings: [Vec<f64>; 4],
}

impl Peaks {
    fn new(isa: &'static str, threads: usize) -> Self {
        let memory = [64 << 20, 256 << 20].map(Memory::with_bytes);
        Peaks { isa, threads, memory, readings: Default::default() }
    }

    fn measure(&mut self) {
        let now = [
            fma_peak_f32(self.isa, self.threads),
            fma_peak_f64(self.isa, self.threads),
            self.memory[0].read(self.threads),
            self.memory[1].read(self.threads),
        ];
        for (readings, now) in self.readings.iter_mut().zip(now) {
            readings.push(now);
        }
    }

    fn record(self) -> record::Peak {
        let [f32, f64, read_64, read_256] = self.readings.map(|mut readings| {
            readings.sort_by(f64::total_cmp);
            record::Figure { median: readings[readings.len() / 2], max: readings[readings.len() - 1] }
        });
        record::Peak { threads: self.threads, isa: self.isa.into(), f32, f64, read_64, read_256 }
    }
}
