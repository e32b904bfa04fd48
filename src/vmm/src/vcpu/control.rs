//! Orders for the vCPU threads, and the one result of the VM.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal;

use crate::exit::Exit;

/// The signal that breaks off KVM_RUN: the last real-time signal. It has a handler that does nothing.
fn kick_signal() -> libc::c_int {
    signal::SIGRTMAX()
}

/// What the vCPU threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Threads that can run guest code.
    running: usize,
    exit: Option<Exit>,
}

/// Where a thread that is on the list can be reached.
#[derive(Debug)]
struct Target {
    /// `immediate_exit` in the vCPU's shared page.
    flag: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: `flag` points to an atomic byte, and it is only followed while the target is on the list, which is while the
// page is mapped; `thread` is a number.
unsafe impl Send for Target {}

/// Shared by all vCPU threads and the owner of the VM.
#[derive(Debug)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// True whenever the order is not `Run`: what threads look at between two exits.
    attention: AtomicBool,
    /// Readable from the end of the VM on.
    ended: EventFd,
    targets: Vec<Mutex<Option<Target>>>,
}

impl Control {
    /// For `vcpus` threads, which all run from the start. Installs the handler of [`kick_signal`].
    pub fn new(vcpus: u8) -> std::io::Result<Control> {
        signal::register_signal_handler(kick_signal(), ignore)?;
        Ok(Control {
            state: Mutex::new(State {
                order: Order::Run,
                running: 0,
                exit: None,
            }),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            targets: (0..vcpus).map(|_| Mutex::new(None)).collect(),
        })
    }

    /// Puts the calling thread, which is to run `vcpu`, on the list of those that can be kicked.
    pub fn enlist<'c>(&'c self, index: u8, vcpu: &mut VcpuFd) -> Kick<'c> {
        // A process-wide mask may have it blocked. If that fails, the mask is as it was: kicks wait for the next exit.
        let _ = signal::unblock_signal(kick_signal());
        let flag = (&raw mut vcpu.get_kvm_run().immediate_exit)
            .cast_const()
            .cast::<AtomicU8>();
        // SAFETY: always sound; it only asks for the calling thread's own id.
        let thread = unsafe { libc::pthread_self() };
        let slot = self.targets.get(usize::from(index));
        if let Some(slot) = slot {
            *lock(slot) = Some(Target { flag, thread });
        }
        lock(&self.state).running += 1;
        Kick {
            control: self,
            slot,
            flag,
        }
    }

    /// The VM is over: the first reason counts. All threads stop.
    pub fn end(&self, exit: Exit) {
        let mut state = lock(&self.state);
        state.exit.get_or_insert(exit);
        state.order = Order::Stop;
        self.attention.store(true, Ordering::SeqCst);
        // An eventfd's counter can't overflow by ones here: at most one per vCPU and call of `stop`.
        let _ = self.ended.write(1);
        drop(state);
        self.changed.notify_all();
        self.kick_all();
    }

    /// Waits for the end.
    pub fn wait(&self) -> Exit {
        let mut state = lock(&self.state);
        loop {
            if let Some(exit) = &state.exit {
                return exit.clone();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Why the VM is over, if it is.
    pub fn exit(&self) -> Option<Exit> {
        lock(&self.state).exit.clone()
    }

    /// Becomes readable at the end, and stays so.
    pub fn ended(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.ended`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ended.as_raw_fd()) }
    }

    /// Returns when no thread runs guest code any more, or the VM is over.
    pub fn pause(&self) {
        let mut state = lock(&self.state);
        if state.order != Order::Run {
            return;
        }
        state.order = Order::Pause;
        self.attention.store(true, Ordering::SeqCst);
        drop(state);
        self.kick_all();
        let mut state = lock(&self.state);
        while state.order == Order::Pause && state.running > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a pause.
    pub fn resume(&self) {
        let mut state = lock(&self.state);
        if state.order == Order::Pause {
            state.order = Order::Run;
            self.attention.store(false, Ordering::SeqCst);
            drop(state);
            self.changed.notify_all();
        }
    }

    fn kick_all(&self) {
        for slot in &self.targets {
            if let Some(target) = &*lock(slot) {
                // SAFETY: a target on the list has its page mapped (see `Kick`), and the lock keeps it on the list.
                unsafe { &*target.flag }.store(1, Ordering::SeqCst);
                // SAFETY: the thread takes itself off the list before it ends, so the id is that of a live thread. The
                // signal has a handler, so it does not end the process.
                unsafe { libc::pthread_kill(target.thread, kick_signal()) };
            }
        }
    }

    /// Waits while the order is to pause. Whether to run afterwards.
    fn obey(&self, before_running: impl FnOnce()) -> bool {
        let mut state = lock(&self.state);
        if state.order == Order::Pause {
            state.running -= 1;
            self.changed.notify_all();
            while state.order == Order::Pause {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.running += 1;
            before_running();
        }
        state.order == Order::Run
    }
}

/// A thread's place on the list. Dropping it, before the vCPU itself, takes the thread off.
#[derive(Debug)]
pub struct Kick<'c> {
    control: &'c Control,
    slot: Option<&'c Mutex<Option<Target>>>,
    flag: *const AtomicU8,
}

impl Kick<'_> {
    /// Whether the thread may enter the guest (again). Waits through a pause, and calls `after_pause` after one.
    pub fn go_on(&self, after_pause: impl FnOnce()) -> bool {
        // SAFETY: the page is mapped for as long as the vCPU exists, which outlives its place on the list.
        unsafe { &*self.flag }.store(0, Ordering::SeqCst);
        // Cleared first, then looked: an order that comes after the look sets the flag again.
        fence(Ordering::SeqCst);
        !self.control.attention.load(Ordering::SeqCst) || self.control.obey(after_pause)
    }
}

impl Drop for Kick<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            *lock(slot) = None;
        }
        lock(&self.control.state).running -= 1;
        self.control.changed.notify_all();
    }
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// A thread that panicked while it held the lock ended the process, or a test.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
