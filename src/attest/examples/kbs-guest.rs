//! `kbs-guest BROKER EVIDENCE [RESOURCE|-]...`: what a guest's init does with a key broker, from this machine, for brokers of others.
//!
//! ```text
//!   BROKER    address and port, over HTTP
//!   EVIDENCE  sample             trustee's sample TEE, which anybody can be
//!             unbound            the same, but vouching for another key
//!             simulated          cwrun's software TEE, as if it were SEV-SNP
//!             REPORT:VCEK        files: a report of SEV-SNP, 1184 bytes, and its chip's certificate
//!   RESOURCE  repository/type/tag, printed as a line of hexadecimal digits. All in one session
//!   -         waits for a line from standard input
//! ```
//!
//! Status 1 and a sentence on standard error if it does not get them. The client that init has, over TCP in place of vsock. That client can't
//! say `sample` of a guest's evidence: a TEE gives evidence, not its user, and trustee's sample is made here alone.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use attest::{Client, Patience, Resource, Surroundings, Tee};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tee::certs::{Certificate, Chain, Link};
use tee::evidence::Evidence;
use tee::launch::{LaunchDigest, Policy};
use tee::report::{HostData, Report, ReportData};
use tee::sim;

/// SHA-384: trustee's sample has no 64 bytes to fill.
const DIGEST: usize = 48;

/// What a guest shows.
enum Proof {
    /// trustee's sample TEE, with REPORT_DATA that is changed by this.
    Sample { change: u8 },
    /// A guest of the software TEE.
    Simulated(Box<sim::Guest>),
    /// What some processor once signed.
    Recorded(Box<Evidence>),
}

struct Guest {
    broker: String,
    proof: Proof,
    start: Instant,
}

impl Proof {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "sample" => Ok(Self::Sample { change: 0 }),
            "unbound" => Ok(Self::Sample { change: 1 }),
            "simulated" => Ok(Self::Simulated(Box::new(sim::Guest {
                measurement: LaunchDigest([1; 48]),
                host_data: HostData([1; 32]),
                policy: Policy::STRICT,
                identity: None,
            }))),
            files => {
                let (report, vcek) = files
                    .split_once(':')
                    .ok_or_else(|| format!("{files}: not sample, unbound, simulated or REPORT:VCEK"))?;
                let report = Report::parse(&read(report)?).map_err(|error| error.to_string())?;
                let vcek =
                    Certificate::from_either(&read(vcek)?, Link::Vek).map_err(|error| error.to_string())?;
                let chain = Chain {
                    vek: Some(vcek),
                    ..Chain::default()
                };
                Ok(Self::Recorded(Box::new(Evidence { report, chain })))
            }
        }
    }

    fn tee(&self) -> Tee {
        match self {
            Self::Sample { .. } => Tee::Sim,
            Self::Simulated(_) | Self::Recorded(_) => Tee::Snp,
        }
    }
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(Path::new(path)).map_err(|error| format!("{path}: {error}"))
}

impl Surroundings for Guest {
    type Stream = TcpStream;

    fn connect(&mut self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.broker)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    fn evidence(&mut self, report_data: &[u8; 64]) -> Result<String, String> {
        Ok(match &self.proof {
            Proof::Sample { change } => {
                let mut digest = report_data[..DIGEST].to_vec();
                digest[0] ^= change;
                format!(r#"{{"svn":"1","report_data":"{}"}}"#, STANDARD.encode(digest))
            }
            Proof::Simulated(guest) => guest.attest(ReportData(*report_data)).to_json(),
            Proof::Recorded(evidence) => evidence.to_json(),
        })
    }

    fn now(&mut self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

fn run(broker: &str, proof: &str, wanted: &[String]) -> Result<(), String> {
    let proof = Proof::parse(proof)?;
    let tee = proof.tee();
    let mut guest = Guest {
        broker: broker.to_owned(),
        proof,
        start: Instant::now(),
    };
    let mut client = Client::new(&mut guest, tee, Patience::default());
    for resource in wanted {
        if resource == "-" {
            let read = io::stdin().read_line(&mut String::new());
            read.map_err(|error| error.to_string())?;
            continue;
        }
        let named = match resource.split('/').collect::<Vec<_>>()[..] {
            [repository, kind, tag] => Resource::new(repository, kind, tag),
            _ => None,
        };
        let named = named.ok_or_else(|| format!("{resource} is not a resource"))?;
        let content = client.resource(&named).map_err(|error| error.to_string())?;
        let line: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut output = io::stdout().lock();
        writeln!(output, "{line}")
            .and_then(|()| output.flush())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, broker, proof, wanted @ ..] = &arguments[..] else {
        eprintln!("usage: kbs-guest BROKER EVIDENCE [RESOURCE|-]...");
        return ExitCode::from(2);
    };
    match run(broker, proof, wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
