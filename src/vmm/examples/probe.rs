//! Runs the probe on `/dev/kvm` and prints what it says.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let started = Instant::now();
    let result = vmm::probe::probe(kvm.as_fd(), Duration::from_millis(1500));
    println!("{:?} after {:?}", result, started.elapsed());
    if let Err(error) = result {
        println!("{error}");
        std::process::exit(1);
    }
    Ok(())
}
