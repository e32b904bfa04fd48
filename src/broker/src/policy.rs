//! Policy files: clauses that people write, beside those of the registration.
//!
//! ```text
//!   <policies>/default.toml     for every workload
//!   <policies>/<id>.toml        for one workload
//! ```
//!
//! Every file that applies has to accept a report, and so does the registration: a file can only make it stricter. They are read at each
//! decision, so a change takes effect at once; a file with a mistake refuses until it is mended.
//!
//! ```text
//!   <launches>/<id>.toml        for one workload that `buildah mkcw` registered, as `cwrun measure --policy` writes it
//! ```
//!
//! SECURITY: what buildah registers names krun's launch, which ours can't be. So it is the one kind of registration that needs a file, and
//! whose file admits something: these launches, with this HOST_DATA. Without the file there is no launch of ours that is good.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tee::appraise::AppraisalPolicy;

use crate::appraisal::PolicyFile;

/// Name of the file that applies to every workload, without its extension.
const DEFAULT: &str = "default";

/// Largest policy file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why policies can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot read the policy file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not a policy.
    #[error("the policy file {path} is not valid: {field}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The key.
        field: String,
        /// The cause, with line and column.
        source: Box<toml::de::Error>,
    },
}

/// The directory of policy files.
pub struct Policies(Option<PathBuf>);

impl Policies {
    /// The files of a directory, none without one. Reads all of them once, so that a mistake shows at the start.
    pub fn open(directory: Option<&Path>) -> Result<Self, Error> {
        directory.map_or(Ok(()), read_all::<PolicyFile>)?;
        Ok(Self(directory.map(Path::to_path_buf)))
    }

    /// The policies for a workload, whose id is a [name](crate::protocol::is_name), with the names of their files.
    pub fn of(&self, id: &str) -> Result<Vec<PolicyFile>, Error> {
        let Some(directory) = &self.0 else {
            return Ok(Vec::new());
        };
        let mut policies = Vec::new();
        for name in [DEFAULT, id] {
            policies.extend(read(&directory.join(format!("{name}.toml")))?);
        }
        Ok(policies)
    }
}

/// The directory of files that admit launches.
pub struct Launches(Option<PathBuf>);

impl Launches {
    /// The files of a directory, none without one. Reads all of them once, so that a mistake shows at the start.
    pub fn open(directory: Option<&Path>) -> Result<Self, Error> {
        directory.map_or(Ok(()), read_all::<AppraisalPolicy>)?;
        Ok(Self(directory.map(Path::to_path_buf)))
    }

    /// What is admitted of a workload, whose id is a [name](crate::protocol::is_name). `None` without a file.
    pub fn of(&self, id: &str) -> Result<Option<AppraisalPolicy>, Error> {
        self.0
            .as_ref()
            .map_or(Ok(None), |directory| read(&directory.join(format!("{id}.toml"))))
    }
}

/// Looks at every file of a directory.
fn read_all<T: DeserializeOwned>(directory: &Path) -> Result<(), Error> {
    let io = |source| Error::Read {
        path: directory.to_path_buf(),
        source,
    };
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            read::<T>(&path)?;
        }
    }
    Ok(())
}

/// What is in a file; `None` if there is no such file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let io = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
        Ok(metadata) if metadata.len() > MAX_FILE => return Err(io(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => std::fs::read_to_string(path).map_err(io)?,
    };
    let parse = |field: String, source| Error::Parse {
        path: path.to_path_buf(),
        field,
        source: Box::new(source),
    };
    let deserializer = toml::Deserializer::parse(&text).map_err(|source| parse("syntax".into(), source))?;
    serde_path_to_error::deserialize(deserializer)
        .map(Some)
        .map_err(|error| {
            let field = error.path().to_string();
            parse(field, error.into_inner())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_and_a_workloads_own_file_apply() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let policies = Policies::open(Some(directory.path())).unwrap();
        assert_eq!(policies.of("nginx").unwrap().len(), 0);
        write("default.toml", "");
        write("nginx.toml", "");
        assert_eq!(policies.of("nginx").unwrap().len(), 2);
        assert_eq!(policies.of("other").unwrap().len(), 1);
    }

    #[test]
    fn launches_are_admitted_by_a_whole_policy_in_the_workloads_own_file() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let good = format!(
            "launch_digests = [\"{}\"]\nhost_data = [\"{}\"]\nprocessors = [\"genoa\"]\n",
            "01".repeat(48),
            "02".repeat(32)
        );
        write("sample.toml", &good);
        let launches = Launches::open(Some(directory.path())).unwrap();
        assert_eq!(launches.of("sample").unwrap().unwrap().launch_digests.len(), 1);
        assert_eq!(launches.of("other").unwrap(), None);
        assert_eq!(Launches::open(None).unwrap().of("sample").unwrap(), None);
        // What is left out is not "anything".
        for missing in ["launch_digests", "host_data"] {
            let lines = good.lines().filter(|line| !line.starts_with(missing));
            write("sample.toml", &lines.collect::<Vec<_>>().join("\n"));
            let error = launches.of("sample").unwrap_err();
            assert!(error.to_string().contains("sample.toml is not valid"), "{error}");
            assert!(
                std::error::Error::source(&error)
                    .unwrap()
                    .to_string()
                    .contains(missing)
            );
            assert!(Launches::open(Some(directory.path())).is_err());
        }
    }

    #[test]
    fn a_mistake_is_named_and_refuses() {
        let directory = tempfile::tempdir().unwrap();
        let policies = Policies::open(Some(directory.path())).unwrap();
        std::fs::write(directory.path().join("nginx.toml"), "typo = 1").unwrap();
        let error = policies.of("nginx").err().unwrap().to_string();
        assert!(error.contains("nginx.toml is not valid"), "{error}");
        assert!(Policies::open(Some(directory.path())).is_err());
        assert!(policies.of("other").is_ok());
    }
}
