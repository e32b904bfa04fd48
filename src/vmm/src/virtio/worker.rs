//! The thread of a device that has nothing to wait for but its guest and commands.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::queue::{self, Queue};
use super::{Command, Inbox, Interrupt};
use crate::memory::Ram;

/// What such a device does.
pub trait Device: Send {
    /// Serves requests of a queue until there are none.
    fn serve(&mut self, queue: &mut Queue, memory: &Ram, interrupt: &Interrupt) -> Result<(), queue::Error>;

    /// Forgets what the driver has left behind, which has reset the device.
    fn reset(&mut self) {}
}

/// The device's thread.
pub struct Worker<D> {
    pub device: D,
    pub name: String,
    /// Wakes it for commands and for the guest's notifications.
    pub wake: EventFd,
    pub interrupt: Interrupt,
    pub memory: Arc<Ram>,
}

impl<D: Device> Worker<D> {
    /// Runs until it is told to stop.
    pub fn run(mut self, inbox: &Inbox) {
        // While the driver runs the device.
        let mut queues: Vec<Queue> = Vec::new();
        loop {
            // Blocks until there is a notification or a command. An error would be one of the descriptor itself: then the
            // device is dead.
            match self.wake.read() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return tracing::error!(device = self.name, %error, "the device can't be woken"),
                Ok(_) => {}
            }
            while let Some(command) = inbox.next() {
                match command {
                    Command::Activate { queues: started, .. } => queues = started,
                    Command::Reset(done) => {
                        queues.clear();
                        self.device.reset();
                        // The vCPU that waits is gone if the VM is over.
                        let _ = done.send(());
                    }
                    Command::Stop => return,
                }
            }
            let served = queues
                .iter_mut()
                .try_for_each(|queue| self.device.serve(queue, &self.memory, &self.interrupt));
            if let Err(error) = served {
                self.interrupt.fail(&self.name, &error);
                queues.clear();
            }
        }
    }
}
