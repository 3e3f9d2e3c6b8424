//! Prints what the machine can do at most; other benches measure the same beside the kernels.

#[path = "support/peak.rs"]
mod peak;

use peak::{Memory, fma_peak_f32, fma_peak_f64, isas};

fn main() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = if all > 1 { vec![1, all] } else { vec![1] };

    println!("{:10} {:>7} {:>12} {:>12}", "isa", "threads", "f32 GFLOP/s", "f64 GFLOP/s");
    for isa in isas() {
        for &threads in &counts {
            let (f32, f64) = (fma_peak_f32(isa, threads), fma_peak_f64(isa, threads));
            println!("{isa:10} {threads:>7} {f32:>12.1} {f64:>12.1}");
        }
    }

    let mut memory = Memory::new();
    println!("\n{:10} {:>7} {:>12} {:>12}", "memory", "threads", "read GB/s", "copy GB/s");
    for &threads in &counts {
        let (read, copy) = (memory.read(threads), memory.copy(threads));
        println!("{:10} {threads:>7} {read:>12.1} {copy:>12.1}", "");
    }
}
