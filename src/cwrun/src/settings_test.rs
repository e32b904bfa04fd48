use super::*;

#[test]
fn the_example_shows_every_key_with_its_default() {
    let example = include_str!("../../../contrib/cwrun.toml");
    // The directory depends on the user, so it is commented out.
    assert!(example.contains("\n#directory = \"/var/cache/cwrun\"\n"));
    assert_eq!(Settings::parse(example).unwrap(), Settings::default());
    let keys: Vec<_> = example
        .lines()
        .filter_map(|line| Some(line.strip_prefix('#').unwrap_or(line).split_once(" = ")?.0))
        .collect();
    let all = [
        "default_memory",
        "max_vcpus",
        "vmm_headroom",
        "default_scratch",
        "vhost_net",
        "directory",
        "limit",
        "kind",
        "policy",
        "id_block",
        "id_auth",
        "url",
        "ca",
        "proxy",
        "others",
        "timeout_seconds",
        "passphrase_file",
    ];
    assert_eq!(keys, all);
}

#[test]
fn keys_set_what_they_name_and_the_rest_stays() {
    let text = "[vm]\ndefault_memory = \"512MiB\"\nmax_vcpus = 8\nvhost_net = false\n[cache]\ndirectory = \"/data/cwrun\"\nlimit = \"1TiB\"\n";
    let settings = Settings::parse(text).unwrap();
    let expected = Settings {
        vm: Vm {
            default_memory: 512 << 20,
            max_vcpus: 8,
            vhost_net: false,
            ..Vm::default()
        },
        cache: Cache {
            directory: Some("/data/cwrun".into()),
            limit: 1 << 40,
        },
        tee: Tee::default(),
        broker: Broker::default(),
        development: Development::default(),
        file: None,
    };
    assert_eq!(settings, expected);
    assert_eq!(Settings::parse("").unwrap(), Settings::default());
}

#[test]
fn errors_name_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cwrun.toml");
    for (text, expected) in [
        (
            "\n[vm]\nmemory = \"1GiB\"\n",
            "line 3: vm.memory: unknown field `memory`, expected",
        ),
        (
            "[disk]\n",
            "line 1: disk: unknown field `disk`, expected one of `vm`, `cache`, `tee`, `broker`, `development`",
        ),
        (
            "[vm]\nmax_vcpus = \"4\"\n",
            "line 2: vm.max_vcpus: invalid type: string \"4\"",
        ),
        (
            "[vm]\nmax_vcpus = 0\n",
            "line 2: vm.max_vcpus: 0 is not between 1 and 64",
        ),
        (
            "[vm]\nmax_vcpus = 300\n",
            "line 2: vm.max_vcpus: 300 is not between 1 and 64",
        ),
        (
            "[vm]\n\n\ndefault_memory = 1024\n",
            "line 4: vm.default_memory: invalid type: integer `1024`, expected a string",
        ),
        (
            "[vm]\ndefault_memory = \"much\"\n",
            "line 2: vm.default_memory: \"much\" is not a size such as",
        ),
        (
            "[vm]\ndefault_memory = \"1MiB\"\n",
            "line 2: vm.default_memory: is not between 64 MiB",
        ),
        (
            "[vm]\ndefault_memory = \"104857601\"\n",
            "line 2: vm.default_memory: is not a multiple of 1 MiB",
        ),
        (
            "[vm]\nvmm_headroom = \"1k\"\n",
            "line 2: vm.vmm_headroom: is not between 16 MiB",
        ),
        (
            "[vm]\ndefault_scratch = \"1k\"\n",
            "line 2: vm.default_scratch: is not between 4 MiB",
        ),
        (
            "[cache]\ndirectory = \"here\"\n",
            "line 2: cache.directory: \"here\" is not an absolute path",
        ),
        ("vm = 3\n", "line 1: vm: invalid type: integer `3`"),
        ("[vm]\nmax_vcpus = 1\nmax_vcpus = 2\n", "line 3: duplicate key"),
        ("[vm\n", "line 1: "),
    ] {
        fs::write(&path, text).unwrap();
        let error = format!("{:#}", Settings::read(&path).unwrap_err());
        let expected = format!("{}: {expected}", path.display());
        assert!(error.starts_with(&expected), "{expected}: {error}");
        assert!(!error.contains('\n'), "one sentence: {error}");
    }
}

#[test]
fn the_first_file_that_exists_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, vcpus: u8| {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), format!("[vm]\nmax_vcpus = {vcpus}\n")).unwrap();
    };
    let find = |root: bool, variables: &[(&str, &str)]| {
        let variable = |name: &str| {
            let (_, path) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(at(path).into_os_string())
        };
        Settings::find(root, variable, &at("etc/cwrun.toml")).map(|found| (found.vm.max_vcpus, found.file))
    };
    let everything = [
        ("XDG_CONFIG_HOME", "xdg"),
        ("HOME", "home"),
        (VARIABLE, "own.toml"),
    ];
    let (user, home) = (&everything[..2], &everything[1..2]);

    assert_eq!(find(false, user).unwrap(), (4, None));
    write("etc/cwrun.toml", 11);
    assert_eq!(find(false, user).unwrap(), (11, Some(at("etc/cwrun.toml"))));
    write("home/.config/cwrun/cwrun.toml", 12);
    assert_eq!(
        find(false, user).unwrap().0,
        11,
        "XDG_CONFIG_HOME stands for ~/.config"
    );
    assert_eq!(find(false, home).unwrap().0, 12);
    write("xdg/cwrun/cwrun.toml", 13);
    assert_eq!(find(false, user).unwrap().0, 13);
    assert_eq!(find(true, user).unwrap().0, 11, "root has the machine's");

    let error = format!("{:#}", find(true, &everything).unwrap_err());
    assert!(
        error.starts_with("CWRUN_CONFIG: ") && error.ends_with("does not exist"),
        "{error}"
    );
    write("own.toml", 14);
    assert_eq!(find(true, &everything).unwrap(), (14, Some(at("own.toml"))));
}
