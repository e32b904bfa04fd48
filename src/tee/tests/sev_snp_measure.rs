//! Digests and VMSA pages against an independent implementation: the `gctx` and `vmsa` modules of `sev-snp-measure` (PyPI), fed the
//! same pages. `tests/testbed/setup` installs it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tee::image::Image;
use tee::launch::{LaunchDigest, PageType};
use tee::measure::{Launch, Plan};
use tee::vmsa::{CpuModel, SevFeatures, Variant};
use tee::{Gpa, PAGE_SIZE, Page};

const ENTRY: u64 = 0x10_1010;
const PAGE_TABLES: Gpa = Gpa(0x10_0000);

/// The Python of the virtual environment that `tests/testbed/setup` makes.
fn python() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let home = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    let cache = var("CWRUN_BUILD_CACHE").or_else(|| home().map(|home| home.join("cwrun-build")));
    let python = cache
        .expect("HOME is set")
        .join("sev-snp-measure-0.0.13/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run tests/testbed/setup",
        python.display()
    );
    python
}

/// What the independent implementation makes of a request.
fn ask(request: &Value) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sev_snp_measure.py");
    let mut child = Command::new(python())
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin
        .write_all(request.to_string().as_bytes())
        .expect("Python reads");
    drop(stdin);
    let output = child.wait_with_output().expect("Python ends");
    assert!(output.status.success(), "{script} failed");
    serde_json::from_slice(&output.stdout).expect("Python writes JSON")
}

/// An executable with page tables, code, all special pages and scratch.
fn image() -> Image {
    let rows: [(u32, u32, u64, Vec<u8>, u64); 6] = [
        (
            1,
            6,
            0x10_0000,
            (0..0x1000).map(|at| (at * 7) as u8).collect(),
            0x1000,
        ),
        (
            1,
            5,
            0x10_1000,
            (0..0x4321).map(|at| ((at * 13) >> 3) as u8).collect(),
            0x6000,
        ),
        (0x6063_7701, 4, 0x10_7000, vec![], 0x1000),
        (0x6063_7702, 4, 0x10_8000, vec![], 0x1000),
        (0x6063_7703, 4, 0x10_9000, vec![], 0x1000),
        (0x6063_7704, 6, 0x10_a000, vec![], 0x5000),
    ];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([ENTRY, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, rows.len() as u8, 0, 64, 0, 0, 0, 0, 0]);
    let mut offset = 64 + 56 * rows.len() as u64;
    for (p_type, flags, gpa, bytes, memory) in &rows {
        file.extend([*p_type, *flags].into_iter().flat_map(u32::to_le_bytes));
        let fields = [offset, *gpa, *gpa, bytes.len() as u64, *memory, 0x1000];
        file.extend(fields.into_iter().flat_map(u64::to_le_bytes));
        offset += bytes.len() as u64;
    }
    rows.iter().for_each(|row| file.extend(&row.3));
    Image::parse(&file).expect("the image is valid")
}

fn launch<'a>(image: &'a Image, hash_page: &'a Page, vcpus: u32, cpu: CpuModel) -> Launch<'a> {
    let (features, variant) = (SevFeatures::SNP, Variant::Linux6_11);
    Launch {
        image,
        hash_page,
        page_tables: PAGE_TABLES,
        vcpus,
        cpu,
        features,
        variant,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// QEMU's name of the CPU model, as sev-snp-measure has it.
fn qemu_name(cpu: CpuModel) -> &'static str {
    match cpu {
        CpuModel::Milan => "EPYC-Milan",
        CpuModel::Genoa => "EPYC-Genoa",
        CpuModel::Turin => "EPYC-Turin",
    }
}

/// The launch in the other implementation's terms: pages of the image by what they are, vCPUs by their registers.
fn request(plan: &Plan, vcpus: u32, cpu: CpuModel, variant: Variant) -> Value {
    let page = |page: &tee::measure::PlannedPage| {
        let kind = match page.page_type {
            PageType::Normal => "normal",
            PageType::Zero => "zero",
            PageType::Unmeasured => "unmeasured",
            PageType::Secrets => "secrets",
            PageType::Cpuid => "cpuid",
            PageType::Vmsa => unreachable!("updates have no VMSA"),
        };
        json!({ "kind": kind, "gpa": page.gpa.0, "bytes": hex(&page.bytes[..]) })
    };
    let pages: Vec<_> = plan.updates().map(page).collect();
    let fpu = variant == Variant::Linux6_11;
    json!({
        "pages": pages, "vcpus": vcpus, "cpu": qemu_name(cpu), "sev_features": 1, "fpu": fpu,
        "entry": ENTRY, "page_tables": PAGE_TABLES.0,
    })
}

#[test]
fn digests_equal_those_of_sev_snp_measure() {
    let (image, hash_page) = (image(), std::array::from_fn(|at| (at >> 4) as u8));
    let mut seen = std::collections::BTreeSet::new();
    for cpu in CpuModel::ALL {
        for vcpus in [1, 2, 3, 8, 64] {
            for variant in Variant::ALL {
                let plan = Plan::new(&Launch {
                    variant,
                    ..launch(&image, &hash_page, vcpus, cpu)
                })
                .unwrap();
                let answer = ask(&request(&plan, vcpus, cpu, variant));
                let expected: LaunchDigest = answer["digest"].as_str().unwrap().parse().unwrap();
                assert_eq!(
                    plan.digest(),
                    expected,
                    "{cpu}, {vcpus} vCPUs, {}",
                    variant.name()
                );
                seen.insert(expected);
            }
        }
    }
    assert_eq!(
        seen.len(),
        30,
        "each count, model and variant has a digest of its own"
    );
}

#[test]
fn vmsa_pages_equal_those_of_sev_snp_measure() {
    let (image, hash_page) = (image(), [0; PAGE_SIZE]);
    for cpu in CpuModel::ALL {
        let plan = Plan::new(&launch(&image, &hash_page, 2, cpu)).unwrap();
        let answer = ask(&request(&plan, 2, cpu, Variant::Linux6_11));
        let vmsas = plan
            .pages()
            .iter()
            .filter(|page| page.page_type == PageType::Vmsa);
        for (page, name) in vmsas.zip(["boot", "other"]) {
            assert_eq!(
                hex(&page.bytes[..]),
                answer[name].as_str().unwrap(),
                "{name} vCPU of {cpu}"
            );
        }
    }
}
