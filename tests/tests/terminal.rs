//! Containers with a terminal: the engine gets its master through `--console-socket`, as from runc and crun.

use e2e::process::{eventually, own_group};
use e2e::{Bundle, Cwrun};
use rustix::fs::OFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

/// The master of a container's terminal.
struct Master {
    file: File,
    seen: String,
}

impl Master {
    /// Takes it from the one who connects to the socket, who sends it beside the terminal's name.
    fn receive(socket: &UnixListener) -> Self {
        let (stream, _) = socket.accept().expect("somebody connects");
        let mut name = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut name)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .expect("a message");
        assert!(
            message.bytes > 0,
            "a message without data may not carry descriptors"
        );
        let mut fds: Vec<OwnedFd> = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        assert_eq!(fds.len(), 1, "one descriptor");
        let fd = fds.pop().expect("there is one");
        assert!(rustix::termios::isatty(&fd), "it is a terminal");
        let flags = rustix::fs::fcntl_getfl(&fd).expect("it is open");
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).expect("it can be polled");
        Self {
            file: fd.into(),
            seen: String::new(),
        }
    }

    #[track_caller]
    fn expect(&mut self, text: &str) {
        let what = format!("{text:?} on the terminal");
        let mut buffer = [0; 4096];
        eventually(&what, 30, || {
            if let Ok(count) = self.file.read(&mut buffer) {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            let at = self.seen.find(text)?;
            self.seen.drain(..at + text.len());
            Some(())
        });
    }

    fn send(&mut self, text: &str) {
        self.file
            .write_all(text.as_bytes())
            .expect("the terminal takes a line");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_terminal_behind_a_console_socket() {
    let cwrun = Cwrun::new();
    let script = "trap 'echo size $(stty size)' WINCH
        test -t 0 && test -t 1 && test -t 2 && echo terminal $(tty)
        echo first $(stty size)
        ls -l /dev/console | cut -c1
        read line; echo \"got <$line>\"
        while :; do read line; test \"$line\" = quit && exit 6; done";
    let bundle = Bundle::script(script).with(|config| {
        config["process"]["terminal"] = true.into();
        config["process"]["consoleSize"] = serde_json::json!({"height": 33, "width": 77});
    });
    let path = cwrun.path("console.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let receiver = std::thread::spawn(move || Master::receive(&socket));
    let container = cwrun.create_with(
        "terminal",
        &bundle,
        &["--console-socket", &path.to_string_lossy()],
        Stdio::null(),
    );
    let mut master = receiver.join().expect("the master arrives while create runs");

    cwrun.ok(["start", "terminal"]);
    master.expect("terminal /dev/pts/0\r\n");
    master.expect("first 33 77\r\n");
    master.expect("c\r\n");
    // The guest's terminal echoes and translates; the host's does neither, or all would be there twice.
    master.send("hello\n");
    master.expect("hello\r\n");
    master.expect("got <hello>\r\n");
    let size = Winsize {
        ws_row: 50,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master.file, size).unwrap();
    master.expect("size 50 120");
    master.send("quit\n");
    master.expect("quit\r\n");
    assert_eq!(cwrun.wait(&container), 6);
    assert_eq!(
        (container.output(), container.errors()),
        (String::new(), String::new())
    );
    cwrun.ok(["delete", "terminal"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_terminal_sends_signals_and_its_end_is_a_hangup() {
    let cwrun = Cwrun::new();
    let script =
        "trap 'echo interrupted' INT; trap 'exit 4' HUP; echo ready; while :; do sleep 1 & wait $!; done";
    let bundle = Bundle::script(script).with(|config| config["process"]["terminal"] = true.into());
    let path = cwrun.path("console.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let receiver = std::thread::spawn(move || Master::receive(&socket));
    let container = cwrun.create_with(
        "hangup",
        &bundle,
        &["--console-socket", &path.to_string_lossy()],
        Stdio::null(),
    );
    let mut master = receiver.join().unwrap();
    cwrun.ok(["start", "hangup"]);
    master.expect("ready\r\n");
    master.send("\x03");
    master.expect("interrupted\r\n");
    drop(master);
    assert_eq!(
        cwrun.wait(&container),
        4,
        "closing the terminal is a SIGHUP for its processes"
    );
    cwrun.ok(["delete", "hangup"]);
}

/// Runs it on a terminal of its own, on which this has been typed before it even begins: what was to be seen there, and the status.
fn on_a_terminal(run: e2e::Run, typed: &str) -> (String, i32) {
    // script(1) gives the command a terminal and returns its exit status.
    let inner = run.command();
    let words = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()));
    let line = words.collect::<Vec<_>>().join(" ");
    let mut command = e2e::Run::new("script")
        .args(["-qec", &line, "/dev/null"])
        .command();
    inner.get_envs().for_each(|(name, value)| {
        command.env(name, value.unwrap_or_default());
    });
    own_group(&mut command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    input.write_all(typed.as_bytes()).unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = output.read_to_string(&mut text);
        text
    });
    let status = e2e::process::wait(&mut child, Duration::from_secs(60), &line);
    (reader.join().unwrap(), e2e::process::code(status))
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn run_and_exec_in_front_use_the_callers_terminal() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("echo tty $(tty); read line; echo \"got <$line>\"; exit 8")
        .with(|config| config["process"]["terminal"] = true.into());
    let (text, code) = on_a_terminal(cwrun.run("front", &bundle), "typed\n");
    assert!(
        text.contains("tty /dev/pts/0\r\n") && text.contains("got <typed>\r\n"),
        "{text:?}"
    );
    assert_eq!(code, 8);

    let container = cwrun.create("idle", &Bundle::idle());
    cwrun.ok(["start", "idle"]);
    let script = "tty; read line; echo got $line; exit 9";
    let exec = cwrun.command(["exec", "--tty", "idle", "sh", "-c", script]);
    let (text, code) = on_a_terminal(exec, "typed\n");
    assert!(
        text.contains("/dev/pts/0\r\n") && text.contains("got typed\r\n"),
        "{text:?}"
    );
    assert_eq!(code, 9);
    // Without it, lines are as they were written.
    let (text, _) = on_a_terminal(cwrun.command(["exec", "idle", "echo", "plain"]), "");
    assert_eq!(text, "plain\r\n");
    cwrun.ok(["kill", "idle", "TERM"]);
    cwrun.wait(&container);
    cwrun.ok(["delete", "idle"]);
}
