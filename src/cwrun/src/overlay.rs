//! Of what layers a root file system consists, as the mount table tells it.
//!
//! ```text
//!   rootfs ── mounted: overlay, lowerdir=C:B:A, upperdir=U ──►  A, B, C: layers of the image, never changed
//!                                                               U: this container's own changes
//! ```
//!
//! Whatever is not surely such a mount is `None`: then the root file system is taken as it shows.

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Mount points of the calling process (proc_pid_mountinfo(5)).
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// An overlay mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Lower directories, the lowest first.
    pub layers: Vec<PathBuf>,
    /// The upper directory, if the mount can be written.
    pub upper: Option<PathBuf>,
    /// Marks are `user.overlay.*` instead of `trusted.overlay.*`.
    pub user: bool,
}

impl Overlay {
    /// The overlay that is mounted on `rootfs`.
    pub fn mounted_on(rootfs: &Path) -> Result<Option<Self>> {
        let flags = AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(CWD, rootfs, flags, StatxFlags::MNT_ID)
            .with_context(|| format!("root file system {}", rootfs.display()))?;
        if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Ok(None);
        }
        let rootfs = fs::canonicalize(rootfs).with_context(|| rootfs.display().to_string())?;
        let table = fs::read(MOUNTINFO).context(MOUNTINFO)?;
        Ok(table
            .split(|byte| *byte == b'\n')
            .find_map(|line| Mount::parse(line).filter(|mount| mount.id == stat.stx_mnt_id))
            .filter(|mount| {
                mount.kind == b"overlay" && mount.root == b"/" && mount.point == rootfs.as_os_str().as_bytes()
            })
            .and_then(|mount| parse(&mount.options, &rootfs)))
    }
}

/// One line of the table, with escapes undone but in the options, where they hide commas.
struct Mount {
    id: u64,
    root: Vec<u8>,
    point: Vec<u8>,
    kind: Vec<u8>,
    options: Vec<u8>,
}

impl Mount {
    /// `36 35 98:0 /root /point rw,noatime master:1 - kind source options`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let (root, point) = (fields.nth(2)?, fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self {
            id,
            root: unescape(root),
            point: unescape(point),
            kind: unescape(kind),
            options: options.to_vec(),
        })
    }
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let octal = |digits: &[u8]| {
        let text = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(text, 8).ok()
    };
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match after.get(..3).and_then(octal).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// The options of an overlay mount. Data-only layers, options that are unknown in form and directories that can't be
/// found make it `None`.
fn parse(options: &[u8], rootfs: &Path) -> Option<Overlay> {
    let (mut layers, mut upper, mut user) = (Vec::new(), None, false);
    for option in options.split(|byte| *byte == b',') {
        let cut = option
            .iter()
            .position(|byte| *byte == b'=')
            .unwrap_or(option.len());
        let (name, value) = (&option[..cut], option.get(cut + 1..).unwrap_or_default());
        match name {
            b"lowerdir" => layers.extend(split(&unescape(value))),
            b"lowerdir+" => layers.push(unescape(value)),
            b"datadir+" => return None,
            b"upperdir" => upper = Some(unescape(value)),
            b"userxattr" => user = true,
            _ => {}
        }
    }
    // An empty name stands between `::`, before data-only layers.
    if layers.is_empty() || layers.iter().any(Vec::is_empty) {
        return None;
    }
    Some(Overlay {
        layers: layers
            .iter()
            .rev()
            .map(|layer| find(layer, rootfs))
            .collect::<Option<_>>()?,
        upper: match upper {
            Some(upper) => Some(find(&upper, rootfs)?),
            None => None,
        },
        user,
    })
}

/// Splits at colons, as overlayfs does: not behind a backslash, which is dropped.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => part.extend(bytes.next()),
            b':' => parts.push(std::mem::take(&mut part)),
            _ => part.push(byte),
        }
    }
    parts.push(part);
    parts
}

/// The directory that an option names. Engines with long lists of layers mount from within their store, with names
/// relative to it: for podman's `STORE/ID/merged` that is `STORE`.
fn find(name: &[u8], rootfs: &Path) -> Option<PathBuf> {
    let path = PathBuf::from(OsString::from_vec(name.to_vec()));
    let path = match path.is_absolute() {
        true => path,
        false => rootfs.parent()?.parent()?.join(path),
    };
    // Through the short links that podman uses. No link within the layer is followed.
    fs::canonicalize(path).ok().filter(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_parsed() {
        let line = br"36 35 0:55 / /run/a\040b/rootfs rw,relatime shared:1 - overlay overlay rw,lowerdir=/l\0402:/l1,upperdir=/u,workdir=/w";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, &mount.root[..]), (36, &b"/"[..]));
        assert_eq!(mount.point, b"/run/a b/rootfs");
        assert_eq!(mount.kind, b"overlay");
        assert_eq!(mount.options, br"rw,lowerdir=/l\0402:/l1,upperdir=/u,workdir=/w");
        assert!(Mount::parse(b"").is_none());
        assert!(Mount::parse(b"36 35 0:55 / /x rw - overlay").is_none());
    }

    fn parsed(options: &str, base: &Path) -> Option<Overlay> {
        parse(options.as_bytes(), base)
    }

    #[test]
    fn options_name_directories() {
        let store = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(store.path()).unwrap();
        for name in ["a", "b:c", "d,e", "u", "id/merged", "l"] {
            fs::create_dir_all(home.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("../a", home.join("l/AAA")).unwrap();
        let (rootfs, at) = (home.join("id/merged"), home.display());
        let all = parsed(
            &format!(r"rw,lowerdir={at}/d\054e:{at}/b\134:c:{at}/a,upperdir={at}/u,workdir={at}/w,userxattr"),
            &rootfs,
        );
        let expected = Overlay {
            layers: vec![home.join("a"), home.join("b:c"), home.join("d,e")],
            upper: Some(home.join("u")),
            user: true,
        };
        assert_eq!(all, Some(expected));
        let relative = parsed("ro,lowerdir=l/AAA", &rootfs).unwrap();
        assert_eq!(
            (relative.layers, relative.upper, relative.user),
            (vec![home.join("a")], None, false)
        );
        let single = parsed(&format!("lowerdir+={at}/b:c,lowerdir+={at}/a"), &rootfs).unwrap();
        assert_eq!(single.layers, [home.join("a"), home.join("b:c")]);
        for other in [
            format!("lowerdir={at}/a::{at}/b"),
            format!("lowerdir+={at}/a,datadir+={at}/b"),
            format!("lowerdir={at}/missing"),
            "rw,upperdir=/".into(),
            "lowerdir=".into(),
        ] {
            assert_eq!(parsed(&other, &rootfs), None, "{other}");
        }
    }

    #[test]
    fn directories_that_are_no_overlay_have_no_layers() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Overlay::mounted_on(directory.path()).unwrap(), None);
        assert!(Overlay::mounted_on(Path::new("/does/not/exist")).is_err());
    }
}
