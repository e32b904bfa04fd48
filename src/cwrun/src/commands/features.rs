//! `features`: what this runtime understands, OCI runtime-spec features.md. Every list is the table that the code itself uses.

use crate::bundle::{annotations, host, mounts, seccomp};
use anyhow::Result;
use serde_json::{Value, json};

/// The command.
pub fn run() -> Result<()> {
    super::print_json(&document())
}

fn document() -> Value {
    let capabilities: Vec<_> = workload::Capability::all()
        .map(workload::Capability::name)
        .collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": crate::state::OCI_VERSION,
        "hooks": host::HOOKS,
        "mountOptions": mount_options(),
        "linux": {
            "namespaces": namespaces(),
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS,
                "operators": seccomp::OPERATORS,
                "archs": seccomp::ARCHITECTURES,
                "knownFlags": seccomp::FLAGS,
                "supportedFlags": seccomp::FLAGS
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}}
        },
        "annotations": {"io.cwrun.version": env!("CARGO_PKG_VERSION")},
        "potentiallyUnsafeConfigAnnotations": annotations::ALL
    })
}

fn mount_options() -> Vec<&'static str> {
    let flags = mounts::FLAG_OPTIONS.iter().map(|(name, _, _)| *name);
    let mut options: Vec<_> = flags
        .chain(mounts::BIND_OPTIONS)
        .chain(mounts::GUEST_OPTIONS)
        .chain(mounts::NEUTRAL_OPTIONS)
        .collect();
    options.sort_unstable();
    options
}

/// By the names that config.json has for them.
fn namespaces() -> Vec<Value> {
    let mut names: Vec<_> = host::NAMESPACES.iter().map(|(typ, _)| json!(typ)).collect();
    names.sort_unstable_by_key(Value::to_string);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use std::fs;

    /// A property that this version of the specification does not have must not be there (features.md#specification-version).
    #[test]
    fn properties_are_those_of_the_specification() {
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let document = document();
        let top = [
            "annotations",
            "hooks",
            "linux",
            "mountOptions",
            "ociVersionMax",
            "ociVersionMin",
            "potentiallyUnsafeConfigAnnotations",
        ];
        assert_eq!(keys(&document), top);
        let linux = [
            "apparmor",
            "capabilities",
            "cgroup",
            "intelRdt",
            "mountExtensions",
            "namespaces",
            "seccomp",
            "selinux",
        ];
        assert_eq!(keys(&document["linux"]), linux);
        assert_eq!(
            document["linux"]["namespaces"],
            json!(["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"])
        );
        assert_eq!(
            document["hooks"],
            json!([
                "prestart",
                "createRuntime",
                "createContainer",
                "startContainer",
                "poststart",
                "poststop"
            ])
        );
        for option in ["ro", "rro", "rbind", "tmpcopyup", "rprivate", "strictatime"] {
            assert!(
                document["mountOptions"]
                    .as_array()
                    .unwrap()
                    .contains(&option.into()),
                "{option}"
            );
        }
        assert!(
            document["potentiallyUnsafeConfigAnnotations"]
                .as_array()
                .unwrap()
                .contains(&"krun.cpus".into())
        );
    }

    /// "The runtime MUST accept", "MUST recognize", "MUST support": it does.
    #[test]
    fn what_it_lists_is_accepted() {
        let document = document();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        for version in ["ociVersionMin", "ociVersionMax"] {
            let hooks = document["hooks"].as_array().unwrap().iter();
            let hooks: serde_json::Map<_, _> = hooks
                .map(|name| (name.as_str().unwrap().to_owned(), json!([{"path": "/bin/true"}])))
                .collect();
            let namespaces = document["linux"]["namespaces"].as_array().unwrap().iter();
            let namespaces: Vec<_> = namespaces.map(|name| json!({"type": name})).collect();
            let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
            let capabilities = &document["linux"]["capabilities"];
            let options = document["mountOptions"].as_array().unwrap().iter();
            let options: Vec<_> = options
                .filter(|name| *name != "bind" && *name != "rbind")
                .collect();
            let config = json!({
                "ociVersion": document[version],
                "root": {"path": "rootfs"},
                "process": {"user": {"uid": 0, "gid": 0}, "args": ["/x"], "cwd": "/", "capabilities": {"bounding": capabilities}},
                "mounts": [{"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": options}],
                "hooks": hooks,
                "linux": {"namespaces": namespaces, "uidMappings": map, "gidMappings": map}
            });
            fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            let bundle = Bundle::load(dir.path(), None).unwrap();
            let settings = crate::settings::Settings::default();
            let sizing = crate::bundle::sizing::Sizing::of(&bundle, &settings).unwrap();
            let host = host::split(&bundle, &sizing).unwrap();
            // All but the mount namespace, which a VMM always has.
            assert_eq!(host.namespaces.len(), namespaces.len() - 1);
            let (workload, _, _) = crate::bundle::guest::split(&bundle, "c", &sizing, false).unwrap();
            let hooks = &host.hooks;
            let count =
                hooks.create_runtime.len() + hooks.create_container.len() + workload.start_hooks.len();
            assert_eq!(
                count + hooks.poststart.len() + hooks.poststop.len(),
                document["hooks"].as_array().unwrap().len()
            );
            let bounding = workload.process.capabilities.unwrap().bounding;
            assert_eq!(bounding.len(), capabilities.as_array().unwrap().len());
            // What it does not know would be among the options for the file system.
            assert_eq!(workload.mounts[0].options, mounts::GUEST_OPTIONS);
        }
    }
}
