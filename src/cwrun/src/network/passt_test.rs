use super::*;
use proptest::prelude::*;

fn ports(text: &str) -> Result<(String, String), String> {
    let ports = Ports::parse(text).map_err(|error| format!("{error:#}"))?;
    Ok((ports.tcp, ports.udp))
}

#[test]
fn ports_are_numbers_and_ranges_of_either_kind() {
    let said = |tcp: &str, udp: &str| Ok((tcp.to_owned(), udp.to_owned()));
    assert_eq!(ports(""), said("none", "none"));
    assert_eq!(ports("80"), said("80", "none"));
    assert_eq!(
        ports("80, 443/tcp,53/udp 5000-5010"),
        said("80,443,5000-5010", "53")
    );
    assert_eq!(ports("1-1024/udp"), said("none", "1-1024"));
    for wrong in [
        "0",
        "65536",
        "80/sctp",
        "90-80",
        "-80",
        "+80",
        "all",
        "1-1025",
        "8 0",
        "80/tcp/tcp",
        "~80",
        "80:81",
    ] {
        assert!(ports(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    /// What reaches a command line is made of nothing but numbers, whatever was asked for.
    #[test]
    fn passt_is_told_numbers_only(text in "[0-9/, a-z~:-]{0,20}") {
        if let Ok((tcp, udp)) = ports(&text) {
            for list in [tcp, udp] {
                let numbers = |byte: u8| byte.is_ascii_digit() || b",-".contains(&byte);
                prop_assert!(list == "none" || list.bytes().all(numbers), "{}", list);
            }
        }
    }
}

fn resolv_conf(text: &str) -> Vec<InjectedFile> {
    vec![InjectedFile {
        destination: RESOLV_CONF.to_owned(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        readonly: false,
        content: Blob(text.as_bytes().to_vec()),
    }]
}

#[test]
fn a_resolver_on_the_loopback_becomes_one_that_the_guest_reaches() {
    let redirected = |text: &str, upstream: Option<&str>| {
        let mut files = resolv_conf(text);
        redirect_resolvers(&mut files, || upstream.map(str::to_owned));
        String::from_utf8(files[0].content.0.clone()).unwrap()
    };
    let text =
        "search example.org\nnameserver 127.0.0.1\nnameserver ::1\nnameserver 192.0.2.53\noptions edns0";
    assert_eq!(
        redirected(text, None),
        "search example.org\nnameserver 10.0.2.2\nnameserver 10.0.2.2\nnameserver 192.0.2.53\noptions edns0\n"
    );
    let upstream =
        "# whom it asks\nnameserver 192.0.2.54\nnameserver 127.0.0.7\nnameserver 2001:db8::5\nsearch x\n";
    assert_eq!(
        redirected("nameserver 127.0.0.53\noptions edns0\n", Some(upstream)),
        "nameserver 192.0.2.54\nnameserver 2001:db8::5\noptions edns0\n"
    );
    assert_eq!(
        redirected("nameserver 127.0.0.53\nsearch x\n", None),
        "search x\n"
    );
    for left in [
        "nameserver 192.0.2.53\n",
        "",
        "nameserver\nnameserver x\n",
        "search 127.0.0.1",
    ] {
        assert_eq!(redirected(left, Some(upstream)), left);
    }
    redirect_resolvers(&mut [], || None);
}

#[test]
fn the_guest_gets_both_families_if_the_host_has_them() {
    let four = interface(false);
    assert_eq!(four.check(), Ok(()));
    let text = |interface: &Interface| -> Vec<String> {
        let routes = interface
            .routes
            .iter()
            .map(|route| format!("{} {:?}", route.to, route.via));
        interface
            .addresses
            .iter()
            .map(ToString::to_string)
            .chain(routes)
            .collect()
    };
    assert_eq!(
        text(&four),
        ["10.0.2.100/24", "10.0.2.0/24 None", "0.0.0.0/0 Some(10.0.2.2)"]
    );
    assert_eq!(
        text(&interface(true)),
        [
            "10.0.2.100/24",
            "fd00:2::100/64",
            "10.0.2.0/24 None",
            "fd00:2::/64 None",
            "0.0.0.0/0 Some(10.0.2.2)",
            "::/0 Some(fd00:2::2)"
        ]
    );
}

#[test]
fn what_passt_says_of_its_failure_is_passed_on() {
    let said = "Failed to send 47 bytes to syslog\nDon't run as root. Changing to nobody...\nFailed to send 53 bytes to syslog\n\
        Failed to bind any port for '-t 8099', exiting\n";
    assert_eq!(complaint(said), "Failed to bind any port for '-t 8099', exiting");
    assert_eq!(complaint(""), "it failed and did not say why");
}

#[test]
fn releases_that_repeat_data_are_known_by_their_date() {
    for faulty in [
        "passt unknown version",
        "passt 0.0~git20230309.7c7625d-1",
        "passt 2023_03_29.b10b983",
        "",
    ] {
        assert!(repeats_data(faulty), "{faulty}");
    }
    for sound in ["passt 0.0~git20250503.587980c-2", "passt 2024_06_07.8a83b53"] {
        assert!(!repeats_data(sound), "{sound}");
    }
}
