//! What runs in the guest: `/.krun_config.json` in the root of the file system.
//!
//! `buildah mkcw` writes the configuration of the image that it converted (OCI image-spec, config.md) as it is. Of its
//! object `config`, krun's init takes `Entrypoint`, `Cmd`, `Env` and `WorkingDir`; `User` is ours to honour. Everything
//! else (history, labels, ports, what image-spec calls implementation specific) is skipped, as image-spec demands.

use serde::{Deserialize, Deserializer};

use crate::{Error, WrongField};

/// Path of the document, from the root of the file system.
pub const INNER_CONFIG: &str = ".krun_config.json";

/// The longest such document accepted, in bytes: histories can be long.
pub const MAX_INNER_CONFIG: usize = 1 << 20;

/// The process that an image asks for. No text in it holds a NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerConfig {
    /// `User`: name or number, perhaps with `:` and a group; empty for root. Not looked up here.
    pub user: String,
    /// `Env`: each `NAME=value`, the name not empty.
    pub env: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `WorkingDir`, absolute; `/` where the image names none.
    pub working_dir: String,
}

impl InnerConfig {
    /// Reads the document. Any bytes may be passed.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Inner`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() > MAX_INNER_CONFIG {
            let expected = format_args!("{MAX_INNER_CONFIG} bytes or less");
            let value = format_args!("{} bytes", json.len());
            return Err(Error::Inner(WrongField::new("length", value, expected)));
        }
        let image: Image = serde_json::from_slice(json).map_err(|source| Error::Json {
            document: "/.krun_config.json",
            source,
        })?;
        let mut config = Self::from(image.config);
        config.check().map_err(Error::Inner)?;
        if config.working_dir.is_empty() {
            config.working_dir.push('/');
        }
        Ok(config)
    }

    /// The arguments to run: `Entrypoint`, then `Cmd`. Empty if the image names neither.
    #[must_use]
    pub fn args(&self) -> Vec<&str> {
        self.entrypoint
            .iter()
            .chain(&self.cmd)
            .map(String::as_str)
            .collect()
    }

    fn check(&self) -> Result<(), WrongField> {
        let lists = [
            ("config.Env", &self.env),
            ("config.Entrypoint", &self.entrypoint),
            ("config.Cmd", &self.cmd),
        ];
        for (field, list) in lists {
            for (i, text) in list.iter().enumerate() {
                if text.contains('\0') {
                    return Err(WrongField::text(
                        format_args!("{field}[{i}]"),
                        text,
                        "text without a NUL",
                    ));
                }
            }
        }
        for (i, variable) in self.env.iter().enumerate() {
            if variable.find('=').is_none_or(|at| at == 0) {
                return Err(WrongField::text(
                    format_args!("config.Env[{i}]"),
                    variable,
                    "NAME=value",
                ));
            }
        }
        if self.user.chars().any(char::is_control) {
            return Err(WrongField::text("config.User", &self.user, "printable text"));
        }
        let directory = &self.working_dir;
        if !directory.is_empty() && (!directory.starts_with('/') || directory.contains('\0')) {
            return Err(WrongField::text(
                "config.WorkingDir",
                directory,
                "an absolute path",
            ));
        }
        Ok(())
    }
}

/// The parts of an image configuration that count here.
#[derive(Deserialize)]
struct Image {
    config: ImageConfig,
}

/// Docker wrote `null` for empty lists, and such images are still around.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageConfig {
    #[serde(default)]
    user: String,
    #[serde(default, deserialize_with = "list")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    cmd: Vec<String>,
    #[serde(default)]
    working_dir: String,
}

fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl From<ImageConfig> for InnerConfig {
    fn from(config: ImageConfig) -> Self {
        Self {
            user: config.user,
            env: config.env,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            working_dir: config.working_dir,
        }
    }
}

#[cfg(test)]
#[path = "inner_test.rs"]
mod tests;
