//! The image under test, built by `src/stage0/build`, and the pages that its program headers name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use stage0::abi::segment;

/// One program header.
#[derive(Clone, Debug)]
pub struct Segment {
    pub kind: u32,
    pub gpa: u64,
    pub contents: Vec<u8>,
}

/// The image.
#[derive(Clone, Debug)]
pub struct Elf {
    pub entry: u64,
    pub segments: Vec<Segment>,
}

impl Elf {
    /// The image that a confidential guest starts with.
    pub fn confidential() -> &'static Elf {
        static IMAGE: OnceLock<Elf> = OnceLock::new();
        IMAGE.get_or_init(|| Elf::parse(&std::fs::read(built().join("stage0")).expect("the build made it")))
    }

    /// The only segment of a kind.
    pub fn segment(&self, kind: u32) -> &Segment {
        let mut found = self.segments.iter().filter(|segment| segment.kind == kind);
        let segment = found.next().expect("there is one");
        assert!(found.next().is_none(), "two segments of kind {kind:#x}");
        segment
    }

    /// First byte and first byte after it.
    pub fn extent(&self) -> (u64, u64) {
        let end = |segment: &Segment| segment.gpa + segment.contents.len() as u64;
        let start = self
            .segments
            .iter()
            .map(|segment| segment.gpa)
            .min()
            .expect("segments");
        (start, self.segments.iter().map(end).max().expect("segments"))
    }

    /// The first page of the zeroed memory, which becomes the GHCB.
    pub fn ghcb(&self) -> u64 {
        self.segment(segment::ZERO).gpa
    }

    fn parse(file: &[u8]) -> Elf {
        let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(file[..6], *b"\x7fELF\x02\x01");
        let headers = u64_at(32) as usize;
        let count = usize::from(file[56]);
        let segments = (0..count).map(|index| headers + index * 56).map(|at| {
            let (offset, stored, size) = (
                u64_at(at + 8) as usize,
                u64_at(at + 32) as usize,
                u64_at(at + 40) as usize,
            );
            let mut contents = file[offset..offset + stored].to_vec();
            contents.resize(size, 0);
            Segment {
                kind: u32_at(at),
                gpa: u64_at(at + 24),
                contents,
            }
        });
        Elf {
            entry: u64_at(24),
            segments: segments.collect(),
        }
    }
}

/// Builds the image where the tests may write, once.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build(Path::new(env!("CARGO_MANIFEST_DIR")), "image"))
}

/// Builds the sources at `package` and returns the directory with the result.
pub fn build(package: &Path, name: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new(package.join("build"))
        .arg("--plain")
        .arg("--out")
        .arg(out.join("out"))
        .arg("--work")
        .arg(out.join("work"))
        .status()
        .expect("src/stage0/build can be run");
    assert!(status.success());
    out.join("out")
}
