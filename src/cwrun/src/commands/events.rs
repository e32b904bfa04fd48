//! `events`: what a container uses, and when it had too little memory, as lines of JSON in the shape of runc.
//!
//! Processor time, memory and disks are those of the VMM, which carries the whole guest; processes are counted in the guest. An event of
//! type `oom` says that a process of the container, or the VMM itself, was ended for want of memory.

use crate::bundle::sizing::Limits;
use crate::cgroup::usage::{Groups, Pids, Usage};
use crate::cli::{Events, Global};
use crate::control;
use crate::state::{Container, Root};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, Instant};
use workload::protocol::{Outcome, Request};

/// How often it is looked for events that nobody announces.
const LOOK: Duration = Duration::from_secs(1);
/// How long a VMM that has stopped to answer may take to end.
const END: Duration = Duration::from_secs(10);

/// One line.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Usage>,
}

/// The command.
pub fn run(global: &Global, args: &Events) -> Result<()> {
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let mut watch = Watch::begin(&container)?;
    if args.stats {
        return watch.print_usage();
    }
    let mut next = Instant::now() + args.interval;
    while container.lives() {
        let pause = next.saturating_duration_since(Instant::now()).min(LOOK);
        std::thread::sleep(pause);
        let looked = watch.look().and_then(|()| {
            if Instant::now() < next {
                return Ok(());
            }
            next += args.interval;
            watch.print_usage()
        });
        // Whatever can't be asked of a container that is about to end is no failure.
        if let Err(error) = looked
            && container.outlives(END)
        {
            return Err(error);
        }
    }
    watch.look_at_host()
}

/// A container that is being looked at.
struct Watch<'a> {
    container: &'a Container,
    groups: Groups,
    /// Ends for want of memory that are known already, in the guest and on the host.
    oom_kills: (u64, u64),
}

impl<'a> Watch<'a> {
    fn begin(container: &'a Container) -> Result<Self> {
        let id = &container.record.id;
        let status = container.status();
        let vmm = match container.record.vmm {
            Some(vmm) if container.lives() => vmm,
            _ => bail!("container {id:?} is {status}, it uses nothing"),
        };
        ensure!(
            container.record.cgroup.is_some(),
            "container {id:?} has no cgroup of its own that would say what it uses"
        );
        let groups = Groups::of(vmm.pid)?;
        let mut watch = Self {
            container,
            groups,
            oom_kills: (0, 0),
        };
        let (_, in_guest) = watch.ask()?;
        watch.oom_kills = (in_guest, watch.groups.oom_kills());
        Ok(watch)
    }

    /// Tasks of the container, and how many of its processes were ended for want of memory.
    fn ask(&self) -> Result<(u64, u64)> {
        match control::ask(self.container, Request::Usage)? {
            Outcome::Usage { tasks, oom_kills } => Ok((tasks, oom_kills)),
            other => bail!("container {:?} answers with {other:?}", self.container.record.id),
        }
    }

    fn print_usage(&self) -> Result<()> {
        let (tasks, _) = self.ask()?;
        let config = self.container.config()?;
        let resources = config
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().clone());
        let limits = Limits::of(&resources.unwrap_or_default())?;
        let mut usage = self.groups.usage();
        usage.pids = Pids {
            current: tasks,
            limit: limits.tasks.unwrap_or(0),
        };
        self.print("stats", Some(usage))
    }

    /// Prints an event if a process was ended for want of memory since the last look.
    fn look(&mut self) -> Result<()> {
        let (_, in_guest) = self.ask()?;
        if in_guest > self.oom_kills.0 {
            self.oom_kills.0 = in_guest;
            self.print("oom", None)?;
        }
        self.look_at_host()
    }

    fn look_at_host(&mut self) -> Result<()> {
        let on_host = self.groups.oom_kills();
        if on_host > self.oom_kills.1 {
            self.oom_kills.1 = on_host;
            self.print("oom", None)?;
        }
        Ok(())
    }

    fn print(&self, kind: &str, data: Option<Usage>) -> Result<()> {
        let id = &self.container.record.id;
        let line = serde_json::to_string(&Event { kind, id, data }).context("JSON")?;
        writeln!(std::io::stdout(), "{line}").context("standard output")
    }
}

/// Units of a [`parse_interval`], in nanoseconds. Those that begin like another come before it.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// A time as runc takes it: numbers with units, one after the other.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time above 0 such as 5s, 500ms or 1m30s");
    let mut rest = text;
    let mut nanoseconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (number, behind) = rest.split_at(digits);
        let unit = UNITS.iter().find(|(unit, _)| behind.starts_with(unit));
        let (unit, factor) = unit.ok_or_else(wrong)?;
        nanoseconds += number.parse::<f64>().map_err(|_| wrong())? * factor;
        rest = &behind[unit.len()..];
    }
    let interval = Duration::try_from_secs_f64(nanoseconds / 1e9).map_err(|_| wrong())?;
    if interval.is_zero() || interval > Duration::from_secs(1 << 32) {
        return Err(wrong());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_runc() {
        let parsed = |text| parse_interval(text).unwrap();
        assert_eq!(parsed("5s"), Duration::from_secs(5));
        assert_eq!(parsed("1m30s"), Duration::from_secs(90));
        assert_eq!(parsed("1.5h"), Duration::from_secs(5400));
        assert_eq!(parsed("250ms"), Duration::from_millis(250));
        assert_eq!(parsed("3us"), Duration::from_micros(3));
        for wrong in ["", "5", "s", "0s", "-1s", "5 s", "1.2.3s", "5x", "99999999999h"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let event = |data| {
            serde_json::to_value(Event {
                kind: "k",
                id: "c",
                data,
            })
            .unwrap()
        };
        assert_eq!(event(None), serde_json::json!({"type": "k", "id": "c"}));
        let members = event(Some(Usage::default()))["data"].as_object().unwrap().len();
        assert_eq!(members, 4);
    }
}
