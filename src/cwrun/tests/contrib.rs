//! What is in `contrib/` is what the programs that it is for can read, and says what this runtime says of itself.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../contrib")
        .join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(contrib(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn parsed(name: &str) -> toml::Table {
    text(name)
        .parse()
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn cwrun(args: &[&str], variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cwrun"));
    command.args(args).envs(variables.iter().copied());
    command.output().expect("cwrun runs")
}

const BINARY: &str = "/usr/local/bin/cwrun";

/// Annotations that a file lets through are ones that we know, and name no file of the host.
#[track_caller]
fn check_annotations(list: &toml::Value) {
    let features: Value = serde_json::from_slice(&cwrun(&["features"], &[]).stdout).unwrap();
    let known = features["potentiallyUnsafeConfigAnnotations"].as_array().unwrap();
    let list = list.as_array().unwrap();
    assert!(!list.is_empty());
    for name in list.iter().map(|name| name.as_str().unwrap()) {
        assert!(known.contains(&name.into()), "{name}");
        assert!(!name.contains("development"), "{name}");
    }
}

#[test]
fn containerd() {
    for (name, version, plugin) in [
        ("containerd/config-v2.toml", 2, "io.containerd.grpc.v1.cri"),
        ("containerd/config-v3.toml", 3, "io.containerd.cri.v1.runtime"),
    ] {
        let config = parsed(name);
        assert_eq!(config["version"].as_integer(), Some(version));
        let runtime = &config["plugins"][plugin]["containerd"]["runtimes"]["cwrun"];
        assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        assert_eq!(runtime["options"]["BinaryName"].as_str(), Some(BINARY));
        assert!(runtime["options"]["SystemdCgroup"].is_bool());
        check_annotations(&runtime["pod_annotations"]);
    }
}

#[test]
fn crio() {
    let config = parsed("crio/50-cwrun.conf");
    let runtime = &config["crio"]["runtime"]["runtimes"]["cwrun"];
    assert_eq!(runtime["runtime_path"].as_str(), Some(BINARY));
    assert_eq!(runtime["runtime_type"].as_str(), Some("oci"));
    // With a name that is not CRI-O's own, it does not start.
    assert!(runtime.get("allowed_annotations").is_none());
}

#[test]
fn docker() {
    let config: Value = serde_json::from_str(&text("docker/daemon.json")).unwrap();
    assert_eq!(config["runtimes"]["cwrun"]["path"], BINARY);
}

/// No parser of YAML is among the dependencies: lines are indented by two spaces a level, and are a key, an item or a comment.
#[test]
fn kubernetes() {
    for (name, kind, line) in [
        ("kubernetes/runtimeclass.yaml", "RuntimeClass", "handler: cwrun"),
        ("kubernetes/pod.yaml", "Pod", "  runtimeClassName: cwrun"),
    ] {
        let text = text(name);
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect();
        assert!(
            lines.contains(&format!("kind: {kind}").as_str()) && lines.contains(&line),
            "{name}"
        );
        let mut deepest = 0;
        for line in lines {
            let content = line.trim_start();
            let indent = line.len() - content.len();
            assert!(
                indent % 2 == 0 && indent <= deepest && !line.contains('\t'),
                "{name}: {line}"
            );
            let entry = content.strip_prefix("- ").unwrap_or(content);
            let (key, value) = entry.split_once(':').unwrap_or_else(|| panic!("{name}: {line}"));
            assert!(
                !key.contains([' ', '"']) && (value.is_empty() || value.starts_with(' ')),
                "{name}: {line}"
            );
            deepest = indent
                + if value.is_empty() || entry != content {
                    4
                } else {
                    0
                };
            deepest = deepest.max(indent);
        }
    }
    assert!(text("kubernetes/runtimeclass.yaml").contains("\noverhead:\n  podFixed:\n    memory: "));
}

#[test]
fn podman() {
    let config = parsed("podman/cwrun.conf");
    let paths = config["engine"]["runtimes"]["cwrun"].as_array().unwrap();
    assert_eq!(paths[0].as_str(), Some(BINARY));

    let install = |dest: &Path, args: &[&str]| {
        let mut command = Command::new(contrib("podman/install"));
        command
            .args(args)
            .env("DESTDIR", dest)
            .env("HOME", "/home/x")
            .env_remove("XDG_CONFIG_HOME");
        command.output().expect("the script runs")
    };
    let dest = tempfile::tempdir().unwrap();
    for (args, file) in [
        (&[][..], "etc/containers/containers.conf.d/cwrun.conf"),
        (
            &["--user"],
            "home/x/.config/containers/containers.conf.d/cwrun.conf",
        ),
    ] {
        // Twice is as good as once.
        for _ in 0..2 {
            assert!(install(dest.path(), args).status.success());
        }
        assert_eq!(
            fs::read_to_string(dest.path().join(file)).unwrap(),
            text("podman/cwrun.conf")
        );
        assert!(
            install(dest.path(), &[args, &["--remove"]].concat())
                .status
                .success()
        );
        assert!(!dest.path().join(file).exists());
    }
    let wrong = install(dest.path(), &["--purge"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("--purge"));
}

#[test]
fn check_says_which_settings_are_read() {
    let finding = |file: &Path| {
        // Whether containers can run on this machine is not the question here.
        let output = cwrun(&["check", "--json"], &[("CWRUN_CONFIG", file)]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        checks
            .into_iter()
            .find(|check| check["name"] == "settings")
            .unwrap()
    };
    let example = contrib("cwrun.toml");
    let good = finding(&example);
    assert_eq!(good["ok"], true);
    assert_eq!(good["detail"], example.display().to_string());
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("cwrun.toml");
    fs::write(&broken, "[vm]\nsize = 1\n").unwrap();
    let bad = finding(&broken);
    assert_eq!(bad["ok"], false);
    let detail = bad["detail"].as_str().unwrap();
    assert!(
        detail.starts_with(&format!("{}: line 2: vm.size: ", broken.display())),
        "{detail}"
    );
    // A container is not created with settings that can't be read, but what there is can still be seen and deleted.
    let state = dir.path().join("state");
    let root = ["--root", state.to_str().unwrap()];
    let output = cwrun(
        &[&root[..], &["create", "c"]].concat(),
        &[("CWRUN_CONFIG", &broken)],
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 2: vm.size"));
    for command in [&["list"][..], &["delete", "--force", "c"]] {
        assert!(
            cwrun(&[&root[..], command].concat(), &[("CWRUN_CONFIG", &broken)])
                .status
                .success()
        );
    }
}
