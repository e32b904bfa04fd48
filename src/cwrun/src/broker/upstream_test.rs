use super::*;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn bundle(annotations: Value) -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    let config = json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": annotations});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bundle = Bundle::load(dir.path(), None).unwrap();
    (dir, bundle)
}

fn choose(annotations: Value, settings: &Settings, image: Option<&str>) -> Result<Upstream, String> {
    let (_dir, bundle) = bundle(annotations);
    let image = image.map(|url| (url, "the image's file"));
    Upstream::choose(&bundle, settings, image).map_err(|error| format!("{error:#}"))
}

fn with_url(url: &str) -> Settings {
    Settings {
        url: Some(url.to_owned()),
        ..Settings::default()
    }
}

#[test]
fn the_annotation_comes_before_the_host_and_the_host_before_the_image() {
    let annotation = || json!({"io.cwrun.broker": "http://a:1/"});
    let (none, own) = (Settings::default(), with_url("http://b:2/kbs//"));
    let url = |annotations, settings, image| choose(annotations, settings, image).unwrap().url;
    assert_eq!(url(annotation(), &own, Some("http://c")), "http://a:1");
    assert_eq!(url(json!({}), &own, Some("http://c")), "http://b:2/kbs");
    assert_eq!(url(json!({}), &none, Some("http://c")), "http://c");
    let nobody = choose(json!({}), &none, None).unwrap_err();
    assert!(nobody.contains("nobody names its key broker"), "{nobody}");
}

#[test]
fn a_host_can_have_one_broker_for_all() {
    let settings = Settings {
        others: false,
        ..with_url("http://b:2")
    };
    let same = json!({"io.cwrun.broker": "http://b:2"});
    assert_eq!(choose(same, &settings, None).unwrap().url, "http://b:2");
    assert_eq!(
        choose(json!({}), &settings, Some("http://c")).unwrap().url,
        "http://b:2"
    );
    let other = json!({"io.cwrun.broker": "http://169.254.169.254"});
    let error = choose(other, &settings, None).unwrap_err();
    assert!(
        error.contains("annotation io.cwrun.broker") && error.contains("forbids others"),
        "{error}"
    );
    let none = Settings {
        others: false,
        ..Settings::default()
    };
    let error = choose(json!({}), &none, Some("http://c")).unwrap_err();
    assert!(
        error.contains("the image's file") && error.contains("forbids others"),
        "{error}"
    );
}

#[test]
fn what_is_no_url_of_a_broker_is_refused() {
    for wrong in [
        "",
        "broker",
        "broker:80",
        "/kbs",
        "ftp://a",
        "file:///etc/passwd",
        "http://",
        "http://user:password@a",
        "http://a/?x",
        "http://a/#x",
        "http://a b",
        "https://[::1",
    ] {
        let error = choose(json!({"io.cwrun.broker": wrong}), &Settings::default(), None).unwrap_err();
        assert!(
            error.starts_with("config.json: annotation io.cwrun.broker: "),
            "{wrong}: {error}"
        );
    }
    let long = format!("http://a/{}", "x".repeat(MAX_URL));
    assert!(parse(&long).is_err());
    for right in ["http://[::1]:80", "https://broker.example.org/a/b"] {
        assert_eq!(parse(right).unwrap(), right);
    }
    let settings = Settings {
        proxy: Some("nonsense".to_owned()),
        ..with_url("http://a")
    };
    let error = choose(json!({}), &settings, None).unwrap_err();
    assert!(error.starts_with("cwrun.toml: broker.proxy: "), "{error}");
}

#[test]
fn certificates_are_those_of_the_file_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let with = |ca: PathBuf| Settings {
        ca: Some(ca),
        ..with_url("https://a")
    };
    let both = concat!(include_str!("tls/root.pem"), include_str!("tls/other.pem"));
    let upstream = choose(json!({}), &with(path("both", both)), None).unwrap();
    assert_eq!(upstream.roots.len(), 2);
    let text = serde_json::to_string(&upstream).unwrap();
    assert_eq!(serde_json::from_str::<Upstream>(&text).unwrap(), upstream);
    for (ca, why) in [
        (path("none", ""), "has none (cwrun.toml: broker.ca)"),
        (
            path(
                "bad",
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            ),
            "cwrun.toml: broker.ca",
        ),
        (dir.path().join("missing"), "cwrun.toml: broker.ca"),
    ] {
        let error = choose(json!({}), &with(ca), None).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    // Nobody reads certificates that are not needed.
    let plain = Settings {
        url: Some("http://a".to_owned()),
        ..with(dir.path().join("missing"))
    };
    assert_eq!(choose(json!({}), &plain, None).unwrap().roots, []);
}

#[test]
fn a_container_that_asks_no_broker_names_none() {
    let (_dir, with) = bundle(json!({"io.cwrun.broker": "http://a"}));
    let error = refuse_unused(&with).unwrap_err().to_string();
    assert!(error.contains("the container is not sealed"), "{error}");
    let (_dir, without) = bundle(json!({}));
    refuse_unused(&without).unwrap();
}
