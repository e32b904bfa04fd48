use super::*;
use serde_json::{Value, json};
use std::fs;

const HOST: Host = Host {
    processors: 8,
    memory_mib: 16 << 10,
};

/// Sizes for these resources and annotations, on a host with 8 processors and 16 GiB.
fn sized(resources: Value, annotations: Value) -> Result<Sizing> {
    sized_with(&Settings::default(), resources, annotations)
}

fn sized_with(settings: &Settings, resources: Value, annotations: Value) -> Result<Sizing> {
    sized_in(&[], settings, resources, annotations)
}

/// `files`: names and content of what is in the root file system.
fn sized_in(
    files: &[(&str, &str)],
    settings: &Settings,
    resources: Value,
    annotations: Value,
) -> Result<Sizing> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rootfs");
    fs::create_dir(&root).unwrap();
    for (name, content) in files {
        fs::write(root.join(name), content).unwrap();
    }
    let config = json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": annotations,
        "linux": {"resources": resources}
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    Sizing::on(&HOST, &Bundle::load(dir.path(), None).unwrap(), settings)
}

fn memory(resources: Value, annotations: Value) -> u64 {
    sized(resources, annotations).unwrap().memory_mib
}

fn vcpus(resources: Value) -> u8 {
    sized(resources, json!({})).unwrap().vcpus
}

#[track_caller]
fn refused(resources: Value, annotations: Value, expected: &str) {
    let error = format!("{:#}", sized(resources, annotations).expect_err("accepted"));
    assert!(error.contains(expected), "{expected}: {error}");
}

#[test]
fn without_limits_the_settings_say() {
    let mut settings = Settings::default();
    let expected = Sizing {
        memory_mib: 1024,
        headroom: 64 << 20,
        vcpus: 4,
        scratch: Scratch::Disk { bytes: 4 << 30 },
    };
    assert_eq!(sized_with(&settings, json!({}), json!({})).unwrap(), expected);
    settings.vm.default_memory = 300 << 20;
    settings.vm.vmm_headroom = 70 << 20;
    settings.vm.max_vcpus = 6;
    settings.vm.default_scratch = 1 << 30;
    let expected = Sizing {
        memory_mib: 300,
        headroom: 70 << 20,
        vcpus: 6,
        scratch: Scratch::Disk { bytes: 1 << 30 },
    };
    assert_eq!(sized_with(&settings, json!({}), json!({})).unwrap(), expected);
}

#[test]
fn the_memory_limit_is_the_guests_memory() {
    assert_eq!(memory(json!({"memory": {"limit": 256 << 20}}), json!({})), 256);
    assert_eq!(
        memory(json!({"memory": {"limit": (64 << 20) + 5}}), json!({})),
        64
    );
    assert_eq!(
        memory(json!({"memory": {"limit": -1, "swap": -1}}), json!({})),
        1024
    );
    assert_eq!(memory(json!({"memory": {"limit": 0}}), json!({})), 1024);
    assert_eq!(
        memory(json!({"memory": {"reservation": 256 << 20}}), json!({})),
        1024
    );
    // As much as the host has, for limits that are none.
    assert_eq!(
        memory(json!({"memory": {"limit": i64::MAX}}), json!({})),
        16 << 10
    );
    // What is set last on the cgroup counts.
    let both = json!({"memory": {"limit": 512 << 20}, "unified": {"memory.max": "256M"}});
    assert_eq!(memory(both, json!({})), 256);
    assert_eq!(memory(json!({"unified": {"memory.max": "max"}}), json!({})), 1024);
    let needs =
        "linux.resources.memory.limit: 63 MiB is too little memory for a guest, which needs at least 64 MiB";
    refused(json!({"memory": {"limit": (64 << 20) - 1}}), json!({}), needs);
}

#[test]
fn an_annotation_asks_for_memory_within_the_limit() {
    let annotation = json!({"krun.ram_mib": "512"});
    assert_eq!(memory(json!({}), annotation.clone()), 512);
    assert_eq!(
        memory(json!({"memory": {"limit": 1 << 30}}), annotation.clone()),
        512
    );
    refused(
        json!({"memory": {"limit": 256 << 20}}),
        annotation,
        "annotation krun.ram_mib: 512 MiB is more than the 256 MiB that linux.resources.memory.limit allows",
    );
    refused(json!({}), json!({"krun.ram_mib": "63"}), "needs at least 64 MiB");
    refused(
        json!({}),
        json!({"krun.ram_mib": "1048577"}),
        "more memory than a guest can have",
    );
}

#[test]
fn an_image_of_mkcw_has_sizes_of_its_own() {
    let sizes = |cpus: u32, ram_mib: u32, resources: Value, annotations: Value| {
        let said = json!({
            "workload_id": "w", "cpus": cpus, "ram_mib": ram_mib, "tee": "snp", "tee_data": "{}", "attestation_url": ""
        });
        let files = [("disk.img", ""), ("krun-sev.json", &*said.to_string())];
        let sizing = sized_in(&files, &Settings::default(), resources, annotations);
        sizing
            .map(|sizing| (sizing.vcpus, sizing.memory_mib))
            .map_err(|error| format!("{error:#}"))
    };
    let none = || json!({});
    assert_eq!(sizes(6, 512, none(), none()), Ok((6, 512)));
    assert_eq!(
        sizes(12, 2048, none(), none()),
        Ok((12, 2048)),
        "more than the host's"
    );
    let limits = json!({"memory": {"limit": 256 << 20}, "cpu": {"cpus": "0-1"}});
    assert_eq!(sizes(6, 512, limits, none()), Ok((2, 256)), "limits come first");
    let annotations = json!({"krun.cpus": "3", "krun.ram_mib": "300"});
    assert_eq!(sizes(6, 512, none(), annotations), Ok((3, 300)));
    let small = sizes(1, 63, none(), none()).unwrap_err();
    assert!(
        small.starts_with("/krun-sev.json in the image: ram_mib: 63 MiB"),
        "{small}"
    );
    let wrong = sizes(0, 512, none(), none()).unwrap_err();
    assert!(wrong.starts_with("/krun-sev.json in the image: "), "{wrong}");
}

#[test]
fn vcpus_follow_quota_and_cpuset() {
    assert_eq!(vcpus(json!({})), 4);
    assert_eq!(vcpus(json!({"cpu": {"quota": 150_000, "period": 100_000}})), 2);
    assert_eq!(vcpus(json!({"cpu": {"quota": 200_000}})), 2);
    assert_eq!(vcpus(json!({"cpu": {"quota": 1000, "period": 100_000}})), 1);
    assert_eq!(vcpus(json!({"cpu": {"quota": -1, "period": 100_000}})), 4);
    assert_eq!(
        vcpus(json!({"cpu": {"quota": 800_000, "period": 100_000}})),
        4,
        "at most vm.max_vcpus"
    );
    assert_eq!(vcpus(json!({"cpu": {"cpus": "0-1"}})), 2);
    assert_eq!(vcpus(json!({"cpu": {"cpus": ""}})), 4);
    assert_eq!(
        vcpus(json!({"cpu": {"cpus": "0-3", "quota": 300_000, "period": 100_000}})),
        3
    );
    assert_eq!(vcpus(json!({"unified": {"cpu.max": "150000 100000"}})), 2);
    assert_eq!(
        vcpus(json!({"unified": {"cpu.max": "max 100000", "cpuset.cpus": "1,3,5"}})),
        3
    );
    let mut settings = Settings::default();
    settings.vm.max_vcpus = 64;
    assert_eq!(
        sized_with(&settings, json!({}), json!({})).unwrap().vcpus,
        8,
        "no more than the host has"
    );
    let asked = sized(json!({"cpu": {"cpus": "0-1"}}), json!({"krun.cpus": "6"}));
    assert_eq!(asked.unwrap().vcpus, 6);
    refused(
        json!({"cpu": {"cpus": "0-1-2"}}),
        json!({}),
        "linux.resources.cpu.cpus: \"0-1-2\"",
    );
    refused(
        json!({"unified": {"cpu.max": "all"}}),
        json!({}),
        "unified: cpu.max: \"all\"",
    );
    refused(
        json!({}),
        json!({"krun.cpus": "65"}),
        "krun.cpus: 65 is not between 1 and 64",
    );
    refused(
        json!({}),
        json!({"krun.cpus": "+2"}),
        "krun.cpus: \"+2\" is not a number",
    );
}

#[test]
fn the_writable_layer_is_sized_by_annotation() {
    let scratch = |text: &str| {
        sized(json!({}), json!({"io.cwrun.scratch": text}))
            .unwrap()
            .scratch
    };
    assert_eq!(scratch("2GiB"), Scratch::Disk { bytes: 2 << 30 });
    assert_eq!(scratch("ram"), Scratch::Ram { bytes: 512 << 20 });
}

#[test]
fn lists_of_processors() {
    for (list, count) in [
        ("0", Some(1)),
        ("0-3,7", Some(5)),
        ("0-3,2-5,5", Some(6)),
        ("7, 8-9", Some(3)),
        ("3-1", None),
        ("", None),
        ("1,", None),
        ("a", None),
        ("-1", None),
        ("0-99999999", None),
    ] {
        assert_eq!(count_processors(list), count, "{list}");
    }
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("1048576", Some(1 << 20)),
        ("4GiB", Some(4 << 30)),
        ("512m", Some(512 << 20)),
        ("2 TiB", Some(2 << 40)),
    ] {
        assert_eq!(parse_size(text), bytes, "{text}");
    }
    for bad in ["", "GiB", "4x", "-1", "99999999999999999999", "9999T"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}
