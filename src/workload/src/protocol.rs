//! The control protocol between `cwrun` (in the VMM process) and `init` (PID 1 of the guest).
//!
//! ```text
//!   init                                    cwrun
//!    │ ── connect vsock CID 2, port CONTROL ──► │
//!    │ ── Hello ──────────────────────────────► │
//!    │ ◄────────────── Request 1: Setup ─────── │  workload, environment, keys
//!    │ ── connect ports stdio(0, 0..=2) ──────► │  (one port, stdio(0, 0), with a terminal)
//!    │ ── Reply 1: Ready │ failure ───────────► │  everything done short of execve
//!    │ ◄────────────── Request 2: Start ─────── │
//!    │ ── Reply 2: Done │ failure ────────────► │
//!    │ ◄────────────── Request n: Signal ────── │
//!    │ ◄────────────── Request m: Exec ──────── │  another process, number k
//!    │ ── connect ports stdio(k, 0..=2) ──────► │
//!    │ ── Reply m: Done │ failure ────────────► │
//!    │ ── Exited k, … ────────────────────────► │  after all output has been written to its streams
//!    │ ── Exited 0 ───────────────────────────► │  the container is over
//! ```
//!
//! A message is a `u32` length in little-endian order, then so many bytes of JSON. Both sides read with
//! [`Decoder`], which refuses a length above [`MAX_MESSAGE`] before it allocates anything.

use crate::{Blob, Environment, Limits, Nonce, Passphrase, Process, VolumeKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::marker::PhantomData;
use zeroize::{Zeroize as _, Zeroizing};

/// The host's vsock context ID (VIRTIO 1.2 §5.10.4).
pub const HOST_CID: u32 = 2;
/// The guest's vsock context ID; every guest has its own VMM, so all may have the same.
pub const GUEST_CID: u32 = 3;
/// Port of the control stream.
pub const CONTROL: u32 = 1024;
/// Port at which a simulated TEE answers: 64 bytes of report data from the guest, then a report of [`REPORT`] bytes from the host.
/// A real TEE's report comes from its firmware.
pub const EVIDENCE: u32 = 1025;
/// Port at which the guest speaks HTTP/1.1 with the key broker: the host passes the bytes on to the broker's URL.
pub const BROKER: u32 = 1026;
/// Length of a report, in bytes (AMD 56860 table 23).
pub const REPORT: usize = 1184;
/// Longest message in bytes. Room for a large Workload and 4 MiB of injected files in base64.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Highest process number that has stdio ports. Numbers are not used again: at a hundred health checks a second, for two months.
pub const MAX_PROCESS: u32 = (1 << 29) - 1;

const STDIO: u32 = 1 << 16;

/// The vsock port of standard stream `stream` (0 input, 1 output, 2 error) of process `process`. Process 0 is the
/// container's first. A terminal uses stream 0 for both directions.
pub const fn stdio(process: u32, stream: u32) -> u32 {
    STDIO + process * 4 + stream
}

/// The inverse of [`stdio`]: process and stream of a port, if it is a stdio port.
pub const fn stdio_of(port: u32) -> Option<(u32, u32)> {
    let Some(index) = port.checked_sub(STDIO) else {
        return None;
    };
    let (process, stream) = (index / 4, index % 4);
    if stream < 3 && process <= MAX_PROCESS {
        Some((process, stream))
    } else {
        None
    }
}

/// Host to guest.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToGuest {
    /// Chosen by the host, repeated in the reply.
    pub id: u32,
    /// What to do.
    pub request: Request,
}

/// What the host can ask for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Prepare everything short of running the workload. Once, first.
    Setup(Box<Setup>),
    /// Run the prepared workload. Once, after `Setup`.
    Start,
    /// Run one more process in the container, between `Setup` and the end of the first. Answered when it runs its program.
    Exec(Box<Exec>),
    /// Send a signal (its Linux number) to a process, or to all processes of the container.
    Signal {
        /// The process's number; 0 is the first.
        process: u32,
        /// 1 to 64.
        signal: i32,
        /// Every process of the container.
        all: bool,
    },
    /// New size of a process's terminal.
    Resize {
        /// The process's number; 0 is the first.
        process: u32,
        /// Character rows.
        rows: u16,
        /// Character columns.
        columns: u16,
    },
    /// Stop all processes of the container where they are, or let them go on.
    Freeze {
        /// Stop.
        frozen: bool,
    },
    /// Which processes are in the container?
    Processes,
    /// Put these limits in the place of those that its processes have together.
    Limit(Limits),
    /// What do its processes use?
    Usage,
    /// What does the TEE say of this guest?
    Attest {
        /// Chosen by whoever wants to know.
        nonce: Nonce,
    },
}

/// One more process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// 1 to [`MAX_PROCESS`], never used before in this guest.
    pub number: u32,
    /// What runs.
    pub process: Process,
    /// Rows and columns of its terminal at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_size: Option<(u16, u16)>,
    /// The control group that it begins in, as a path below the container's own. It must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// Everything the guest needs to prepare the workload.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The Workload's canonical bytes, whose hash is the container's identity.
    pub workload: Blob,
    /// The engine's per-run values.
    pub environment: Environment,
    /// What opens the root file system.
    pub keys: Keys,
    /// Wall-clock time in nanoseconds since 1970, for a guest without a clock of its own.
    pub unix_time_ns: u64,
    /// Whether `init` writes its own log lines to the kernel log.
    pub debug: bool,
}

/// What opens a [`RootFs`](crate::RootFs).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum Keys {
    /// Layers.
    Layers {
        /// Their volume keys, in their order.
        keys: Vec<VolumeKey>,
    },
    /// A disk with a LUKS header.
    Passphrase {
        /// Of any of its key slots.
        passphrase: Passphrase,
    },
    /// The root file system of a sealed Workload: the host has no keys, the guest asks the broker for them.
    Broker,
}

/// Guest to host.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "kebab-case")]
pub enum ToHost {
    /// First message on the control stream.
    Hello {
        /// [`VERSION`] of the guest.
        version: u32,
        /// Kernel release (`uname -r`).
        kernel: String,
        /// Milliseconds from the kernel's first instruction until `init` ran.
        kernel_ms: u64,
    },
    /// Answer to the request with the same `id`.
    Reply {
        /// The request's number.
        id: u32,
        /// What became of it.
        outcome: Outcome,
    },
    /// A process has ended and all its output has been delivered. Of the first, it is the last message.
    Exited {
        /// The process's number; 0 is the first.
        process: u32,
        /// How it ended.
        status: Status,
    },
}

/// Version of this protocol; both sides must have the same.
pub const VERSION: u32 = 1;

/// What became of a request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "kebab-case")]
pub enum Outcome {
    /// `Setup` is complete.
    Ready {
        /// Names and durations in milliseconds of the phases inside `init`, in order.
        phases: Vec<(String, u64)>,
    },
    /// Done; nothing to tell.
    Done,
    /// Answer to [`Request::Processes`].
    Processes {
        /// Their numbers, as the container's first process knows them.
        pids: Vec<i32>,
    },
    /// Answer to [`Request::Usage`].
    Usage {
        /// Processes and threads.
        tasks: u64,
        /// How many processes have been ended so far because there was no memory for them.
        oom_kills: u64,
    },
    /// Answer to [`Request::Attest`].
    Evidence {
        /// The TEE's report, with [`Nonce::report_data`] as its REPORT_DATA.
        report: Blob,
        /// The certificate table that came with it (GHCB 2.0 §4.1.8.1); empty if none did.
        certificates: Blob,
        /// The Workload's canonical bytes, whose SHA-256 is the report's HOST_DATA.
        workload: Blob,
    },
    /// To a client of the VMM that asked for an [`Exec`], after `Done`: the process is over.
    Exited {
        /// How it ended.
        status: Status,
    },
    /// It failed.
    Failed {
        /// What kind of failure, for the exit status.
        kind: FailureKind,
        /// One sentence.
        message: String,
    },
}

/// Kinds of failure that users see as different exit statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The program does not exist: exit status 127.
    NotFound,
    /// The program can't be executed: exit status 126.
    NotExecutable,
    /// The target of a signal is gone.
    NoProcess,
    /// Anything else.
    Other,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "kebab-case")]
pub enum Status {
    /// It exited by itself with this code.
    Code {
        /// Exit code.
        code: u8,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: u8,
    },
}

impl Status {
    /// The status as shells and container engines count: the code, or 128 + signal.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code { code } => code,
            Self::Signal { signal } => signal.saturating_add(128),
        }
    }
}

/// Why bytes from the other side are no message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The announced length is above the limit.
    #[error("the control stream announces a message of {0} bytes, the limit is {MAX_MESSAGE}")]
    TooLong(u32),
    /// Not JSON, or not of the message's shape.
    #[error("the control stream carries a malformed message: {0}")]
    Shape(#[source] serde_json::Error),
}

/// A message's bytes, length in front. Wiped when dropped, since `Setup` carries keys.
///
/// Fails if the message is longer than [`MAX_MESSAGE`].
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, Error> {
    // Two passes, so that the buffer never grows and leaves an unwiped copy behind.
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, message).map_err(Error::Shape)?;
    let length = u32::try_from(counter.0).unwrap_or(u32::MAX);
    if counter.0 > MAX_MESSAGE {
        return Err(Error::TooLong(length));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 + counter.0));
    bytes.extend_from_slice(&length.to_le_bytes());
    serde_json::to_writer(&mut *bytes, message).map_err(Error::Shape)?;
    Ok(bytes)
}

struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Turns a byte stream into messages of type `T`. Holds at most one message and what arrived with it.
pub struct Decoder<T> {
    buffer: Vec<u8>,
    message: PhantomData<T>,
}

impl<T: DeserializeOwned> Default for Decoder<T> {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            message: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// Takes bytes as they arrived. Call [`Decoder::next_message`] until it has no more before the next `push`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete message, if there is one. After an error the stream is unusable.
    pub fn next_message(&mut self) -> Result<Option<T>, Error> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes(*head);
        let length = announced as usize;
        if length > MAX_MESSAGE {
            return Err(Error::TooLong(announced));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body).map_err(Error::Shape)?;
        let used = 4 + length;
        self.buffer[..used].zeroize();
        self.buffer.drain(..used);
        Ok(Some(message))
    }
}

impl<T> Drop for Decoder<T> {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
#[path = "protocol_test.rs"]
mod tests;
