//! Where messages go: one sentence on stderr for a person, and lines in `--log` for the engine.
//!
//! Lines have the members that engines parse (`msg`, `level`, `time`), as crun and runc write them. Phases of a start are
//! events with a `phase` and its duration in `ms`.

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt as _};

/// Form of the lines in `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `time="…" level=… msg="…"`
    Text,
    /// One JSON object a line.
    Json,
}

/// How to log.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--log`
    pub file: Option<PathBuf>,
    /// `--log-format`
    pub format: Format,
    /// `--debug`
    pub debug: bool,
}

/// Starts logging for the rest of the process.
pub fn start(options: &Options) -> Result<()> {
    let sink = match &options.file {
        None => Sink::Stderr,
        Some(path) => Sink::File(Mutex::new(open(path)?)),
    };
    // Without a log file stderr is all there is, and under an engine it is the container's: it gets no warnings.
    let level = match (options.debug, &options.file) {
        (true, _) => Level::DEBUG,
        (false, Some(_)) => Level::WARN,
        (false, None) => Level::ERROR,
    };
    let lines = Lines {
        sink,
        format: options.format,
        level,
    };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).context("logging")
}

fn open(path: &Path) -> Result<File> {
    // systemd and engines pass a file; "/dev/stderr" and the like work as well.
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("--log {}", path.display()))
}

/// Tells a person on stderr, and the engine in the log file if there is one.
pub fn report_error(error: &anyhow::Error, log_file: Option<&Path>) {
    let message = format!("{error:#}");
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "cwrun: {message}");
    if log_file.is_some() {
        tracing::error!("{message}");
    }
}

/// Runs one phase of a start and logs how long it took.
pub fn phase<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    phase_took(name, start.elapsed().as_secs_f64() * 1000.0);
    result
}

/// Logs the duration of a phase in milliseconds that was measured elsewhere.
pub fn phase_took(name: &str, ms: f64) {
    tracing::debug!(
        phase = name,
        ms = (ms * 1000.0).round() / 1000.0,
        "{name} took {ms:.1} ms"
    );
}

enum Sink {
    Stderr,
    File(Mutex<File>),
}

struct Lines {
    sink: Sink,
    format: Format,
    level: Level,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: LayerContext<'_, S>) -> bool {
        // Libraries below tell their own story at their own levels; ours is told here.
        let ours = ["cwrun", "disk", "vmm", "workload"].iter().any(|name| {
            metadata
                .target()
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        });
        *metadata.level() <= if ours { self.level } else { Level::ERROR }
    }

    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let time = time::OffsetDateTime::now_utc();
        let time = time
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default();
        let line = match self.format {
            Format::Json => json_line(fields.0, level, &time),
            Format::Text => text_line(fields.0, level, &time),
        };
        // A log that can't be written is no reason to stop a container.
        let _ = match &self.sink {
            Sink::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Sink::File(file) => match file.lock() {
                Ok(mut file) => file.write_all(line.as_bytes()),
                Err(_) => Ok(()),
            },
        };
    }
}

fn json_line(mut fields: Map<String, Value>, level: &str, time: &str) -> String {
    fields.insert("level".into(), level.into());
    fields.insert("time".into(), time.into());
    format!("{}\n", Value::Object(fields))
}

fn text_line(mut fields: Map<String, Value>, level: &str, time: &str) -> String {
    let message = fields.remove("msg").unwrap_or_default();
    let mut line = format!("time=\"{time}\" level={level} msg={message}");
    for (key, value) in fields {
        line.push_str(&format!(" {key}={value}"));
    }
    line.push('\n');
    line
}

struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" {
            "msg"
        } else {
            field.name()
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
}
