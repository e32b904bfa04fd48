use super::*;
use std::collections::BTreeSet;

/// Writes an image whose layer is one small file.
fn write(name: &str, content: &[u8]) -> Result<Hex<32>> {
    let draft = Draft::begin(Reference::parse(name).unwrap())?;
    let end = write_member(draft.file(), draft.layer_start, "hello", content)?;
    let layer = end + TAR_END - draft.layer_start;
    draft.file().set_len(draft.layer_start + layer)?;
    let configuration = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]}});
    draft.publish(layer, configuration, &|_| ())
}

fn read(name: &str) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let stored = Reference::parse(name).unwrap().read(scratch.path()).unwrap();
    let configuration: Value = serde_json::from_slice(&stored.configuration).unwrap();
    assert_eq!(configuration["config"]["Cmd"][0], "/hello");
    let tree = disk::Tree::from_archives(stored.layers, disk::Markers::Shown).unwrap();
    tree.read_file("/hello", 100).unwrap().unwrap()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(directory).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_layout_is_read_back_and_takes_more_images() {
    let place = tempfile::tempdir().unwrap();
    let name = |tag: &str| format!("oci:{}/layout{tag}", place.path().display());
    write(&name(":one"), b"1").unwrap();
    write(&name(":two"), b"2").unwrap();
    assert_eq!(
        (read(&name(":one")), read(&name(":two"))),
        (b"1".into(), b"2".into())
    );
    write(&name(":one"), b"3").unwrap();
    assert_eq!(
        (read(&name(":one")), read(&name(":two"))),
        (b"3".into(), b"2".into())
    );
    assert_eq!(names(place.path()), ["layout".to_owned()].into());
    assert_eq!(
        names(&place.path().join("layout")),
        ["blobs", "index.json", "oci-layout"].map(String::from).into()
    );
}

#[test]
fn the_same_image_is_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let name = |kind: &str, number: u8| format!("{kind}:{}/{number}", place.path().display());
    assert_eq!(
        write(&name("oci", 1), b"x").unwrap(),
        write(&name("oci", 2), b"x").unwrap()
    );
    write(&name("oci-archive", 3), b"x").unwrap();
    write(&name("oci-archive", 4), b"x").unwrap();
    let bytes = |number: u8| fs::read(place.path().join(number.to_string())).unwrap();
    assert_eq!(bytes(3), bytes(4));
    assert_eq!(read(&name("oci-archive", 3)), b"x");
}

#[test]
fn what_is_no_layout_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("mine"), "").unwrap();
    for (name, said) in [
        (format!("oci:{}", place.path().display()), "neither empty nor"),
        (format!("oci:{}/mine", place.path().display()), "Not a directory"),
        (format!("oci:{}/a/b", place.path().display()), "No such file"),
        (
            format!("oci-archive:{}", place.path().display()),
            "is a directory",
        ),
        (
            format!("docker-archive:{}/x", place.path().display()),
            "oci: or oci-archive:",
        ),
    ] {
        let error = format!("{:#}", write(&name, b"x").unwrap_err());
        assert!(error.starts_with(&name) && error.contains(said), "{error}");
    }
    assert_eq!(names(place.path()), ["mine".to_owned()].into());
}

#[test]
fn a_layout_that_can_not_be_finished_is_as_before() {
    let place = tempfile::tempdir().unwrap();
    let name = format!("oci:{}/layout", place.path().display());
    write(&name, b"1").unwrap();
    let layout = place.path().join("layout");
    let before = names(&layout.join("blobs/sha256"));
    // A directory in the place of the index can't be replaced by a file.
    fs::rename(layout.join("index.json"), layout.join("index.old")).unwrap();
    fs::create_dir(layout.join("index.json")).unwrap();
    write(&name, b"2").unwrap_err();
    assert_eq!(names(&layout.join("blobs/sha256")), before);
    // And an image that was begun and not finished leaves nothing.
    drop(Draft::begin(Reference::parse(&name).unwrap()).unwrap());
    drop(Draft::begin(Reference::parse(&format!("{name}2")).unwrap()).unwrap());
    assert_eq!(names(place.path()), ["layout".to_owned()].into());
}
