//! What runs is what an engine would run.

use super::*;
use std::fs;
use tempfile::TempDir;

/// A root file system with users.
fn rootfs() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(
        root.path().join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.path().join("etc/group"), "www:x:34:\nmedia:x:44:www\n").unwrap();
    root
}

fn source(configuration: Value, args: &[&str]) -> Result<Source> {
    let tree = Tree::scan_as(rootfs().keep().as_path(), Markers::Shown).unwrap();
    let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
    let asked = Asked::parse(configuration.to_string().as_bytes())?;
    Source::of_engine(tree, asked, &args, &Settings::default())
}

#[test]
fn an_image_runs_what_its_configuration_says() {
    let configuration = json!({"config": {
        "User": "www",
        "Entrypoint": ["/entry"],
        "Cmd": ["serve"],
        "Env": ["A=b"],
        "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"secret": "plan"},
        "Volumes": {"/data": {}}
    }});
    let made = source(configuration.clone(), &[]).unwrap();
    let process = &made.workload.process;
    assert_eq!(process.args, ["/entry", "serve"]);
    assert_eq!(process.env, [DEFAULT_PATH, "A=b", "HOME=/var/www"]);
    assert_eq!(
        (process.cwd.as_str(), process.user.uid, process.user.gid),
        ("/srv", 33, 34)
    );
    assert_eq!(process.user.additional_gids, [44]);
    assert!(process.capabilities.as_ref().unwrap().effective.is_empty());
    // What engines see: numbers, since there is nothing to look names up in, and nothing that is not their business.
    assert_eq!(
        Value::Object(made.config),
        json!({
            "User": "33:34", "Entrypoint": ["/entry"], "Cmd": ["serve"], "Env": [DEFAULT_PATH, "A=b"], "WorkingDir": "/srv",
            "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}
        })
    );
    let other = source(configuration, &["x", "y"]).unwrap();
    assert_eq!(other.workload.process.args, ["/entry", "x", "y"]);
    assert_eq!(other.config["Cmd"], json!(["x", "y"]));
}

#[test]
fn root_has_the_capabilities_of_a_container() {
    let made = source(json!({}), &["/bin/sh"]).unwrap();
    let sets = made.workload.process.capabilities.unwrap();
    assert_eq!(sets.effective.len(), CAPABILITIES.len());
    assert_eq!(sets.bounding, sets.effective);
    assert_eq!(made.workload.process.env, [DEFAULT_PATH, "HOME=/root"]);
    assert_eq!(made.workload.process.cwd, "/");
}

#[test]
fn what_can_not_be_run_is_refused() {
    for (configuration, said) in [
        (json!({}), "names no program"),
        (json!({"config": {"Cmd": [""]}}), "names no program"),
        (
            json!({"config": {"Cmd": ["x"], "User": "ghost"}}),
            "user \"ghost\" is not in /etc/passwd",
        ),
        (
            json!({"config": {"Cmd": ["x"], "User": "www:ghosts"}}),
            "group \"ghosts\"",
        ),
        (
            json!({"config": {"Cmd": ["x"], "WorkingDir": "srv"}}),
            "config.WorkingDir",
        ),
        (
            json!({"config": {"Cmd": ["x"], "Env": ["novalue"]}}),
            "config.Env",
        ),
        (json!({"config": {"Cmd": "x"}}), "invalid type"),
    ] {
        let error = match source(configuration.clone(), &[]) {
            Ok(_) => panic!("{configuration}"),
            Err(error) => error,
        };
        // The kinds of documents have sources of their own.
        let error = format!("{error:#}");
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn a_bundle_is_sealed_as_it_would_run() {
    let bundle = tempfile::tempdir().unwrap();
    fs::create_dir_all(bundle.path().join("rootfs/etc")).unwrap();
    fs::write(bundle.path().join("small"), "x").unwrap();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 7, "gid": 8}, "args": ["/bin/true", "x"], "cwd": "/", "env": ["A=b"]},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "small", "options": ["bind"]}
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
    });
    let open = |config: &Value, args: &[String]| {
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        Source::open(
            bundle.path().to_str().unwrap(),
            args,
            bundle.path(),
            &Settings::default(),
        )
    };
    let refused = |config: &Value, args: &[String]| match open(config, args) {
        Ok(_) => panic!("{config}"),
        Err(error) => format!("{error:#}"),
    };
    let made = open(&config, &[]).unwrap();
    assert_eq!(made.workload.process.args, ["/bin/true", "x"]);
    assert!(made.workload.readonly_root);
    assert_eq!(made.config["User"], "7:8");
    assert!(refused(&config, &["sh".to_owned()]).contains("config.json says what runs"));
    for (destination, from, said) in [
        ("/etc/passwd", "small", "the file /etc/passwd is the host's"),
        ("/data", "rootfs", "is a directory"),
    ] {
        let mut other = config.clone();
        let mount = json!({"destination": destination, "type": "bind", "source": from, "options": ["bind"]});
        other["mounts"].as_array_mut().unwrap().push(mount);
        let error = refused(&other, &[]);
        assert!(error.contains(said), "{error}");
    }
    fs::create_dir(bundle.path().join("rootfs/.cwrun")).unwrap();
    fs::write(bundle.path().join("rootfs/.cwrun/workload.json"), "{}").unwrap();
    assert!(refused(&config, &[]).contains("sealed already"));
}
