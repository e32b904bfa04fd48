//! `/init`, the only program in the guest besides the workload.

use rustix::system::{RebootCommand, reboot};

fn main() {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        eprintln!("init is the first process of a cwrun guest and can't be run by hand");
        std::process::exit(1);
    }
    if let Err(failure) = init::guest::run() {
        init::kmsg::error(&failure.message);
    }
    // The reset is what the VMM sees as the end. Should it fail, so does PID 1, and the kernel's panic is a reset too.
    if let Err(error) = reboot(RebootCommand::Restart) {
        init::kmsg::error(&format!("reset: {error}"));
    }
}
