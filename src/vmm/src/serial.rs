//! The serial port COM1 (16550A), which carries the kernel's log out of the guest.
//!
//! What the guest writes goes to a ring of the last 64 KiB, and to a sink if there is one. The vCPU that writes is the
//! thread that delivers: it asks the sink whether it is ready, and a sink that is not loses the line, so a stalled terminal
//! never stalls the guest. The guest gets no input.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

/// How much of the log is kept, in bytes.
const TAIL: usize = 64 << 10;
/// Longest piece handed to the sink at once, in bytes. A pipe that polls as writable takes this much without blocking
/// (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// The interrupt line of the port.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port and what came out of it.
pub struct Serial {
    uart: vm_superio::Serial<Line, NoEvents, Log>,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that interrupts through `line` and copies its output to `sink`.
    pub fn new(line: EventFd, sink: Option<File>) -> Serial {
        Serial {
            uart: vm_superio::Serial::new(Line(line), Log::new(sink)),
        }
    }

    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        // Offsets are 0 to 7: the bus checked the range.
        self.uart.read(offset as u8)
    }

    /// Writes the register at `offset` (0 to 7).
    pub fn write(&mut self, offset: u16, value: u8) {
        // The log never fails. An interrupt that can't be delivered costs the guest's terminal a delay; the kernel's
        // log does not use interrupts.
        let _ = self.uart.write(offset as u8, value);
    }

    /// The last 64 KiB of output, with bytes that are not UTF-8 replaced.
    pub fn tail(&mut self) -> String {
        let log = self.uart.writer_mut();
        log.deliver();
        String::from_utf8_lossy(log.tail.make_contiguous()).into_owned()
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.uart.writer_mut().deliver();
    }
}

/// Ring and sink.
struct Log {
    tail: VecDeque<u8>,
    sink: Option<File>,
    /// The current line, on its way to the sink.
    line: Vec<u8>,
    /// Bytes that the sink has missed since it last took something.
    lost: u64,
}

impl Log {
    fn new(sink: Option<File>) -> Log {
        Log {
            tail: VecDeque::new(),
            sink,
            line: Vec::new(),
            lost: 0,
        }
    }

    /// Hands the current line to the sink if that is ready, and drops it.
    fn deliver(&mut self) {
        let Some(sink) = self.sink.as_mut().filter(|_| !self.line.is_empty()) else {
            return;
        };
        if !is_ready(sink) {
            self.lost += self.line.len() as u64;
        } else {
            if self.lost > 0 {
                let note = format!("[{} bytes of the guest's log lost here]\n", self.lost);
                self.line.splice(..0, note.into_bytes());
                self.lost = 0;
            }
            // A sink that is closed or broken is the reader's choice; the ring still has the log.
            let _ = sink.write_all(&self.line);
        }
        self.line.clear();
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL);
        self.tail.drain(..excess.min(self.tail.len()));
        self.tail.extend(bytes);
        if self.sink.is_some() {
            self.line.extend_from_slice(bytes);
            // Room for the note about lost bytes stays within the piece.
            if bytes.contains(&b'\n') || self.line.len() >= PIECE - 64 {
                self.deliver();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the sink takes bytes now. Regular files always do.
fn is_ready(sink: &File) -> bool {
    let mut fds = [PollFd::new(sink, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    fn serial(sink: Option<File>) -> Serial {
        Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), sink)
    }

    fn print(serial: &mut Serial, text: &str) {
        text.bytes().for_each(|byte| serial.write(0, byte));
    }

    #[test]
    fn the_tail_is_the_end_of_the_output() {
        let mut port = serial(None);
        assert_eq!(port.tail(), "");
        print(&mut port, "hello\nworld");
        assert_eq!(port.tail(), "hello\nworld");
        for line in 0..10_000 {
            print(&mut port, &format!("line {line}\n"));
        }
        let tail = port.tail();
        assert_eq!(tail.len(), TAIL);
        assert!(tail.ends_with("line 9998\nline 9999\n"));
    }

    #[test]
    fn any_register_takes_any_value() {
        let mut port = serial(None);
        for offset in 0..8 {
            for value in 0..=255 {
                port.write(offset, value);
                port.read(offset);
            }
        }
    }

    #[test]
    fn a_sink_gets_every_line_and_the_rest_at_the_end() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut port = serial(Some(File::from(write)));
        print(&mut port, "one\ntwo\nthr");
        drop(port);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\nthr");
    }

    #[test]
    fn a_stalled_sink_loses_lines_and_is_told() {
        let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
        let mut port = serial(Some(File::from(write)));
        let line = format!("{}\n", "x".repeat(1000));
        for _ in 0..200 {
            print(&mut port, &line);
        }
        let mut read = File::from(read);
        let mut full = vec![0; 32 << 10];
        read.read_exact(&mut full).unwrap();
        print(&mut port, "after\n");
        drop(port);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert!(
            text.contains("bytes of the guest's log lost here]\nafter\n"),
            "{text}"
        );
    }
}
