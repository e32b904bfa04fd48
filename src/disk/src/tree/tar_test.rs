//! Records and times, taken apart.

use proptest::prelude::*;

use super::*;

fn record(keyword: &str, value: &[u8]) -> Vec<u8> {
    let rest = keyword.len() + value.len() + 3;
    // The length counts its own digits.
    let length = (rest..)
        .find(|length| length - length.to_string().len() == rest)
        .unwrap();
    [
        length.to_string().as_bytes(),
        b" ",
        keyword.as_bytes(),
        b"=",
        value,
        b"\n",
    ]
    .concat()
}

#[test]
fn values_may_hold_newlines_and_equals_signs() {
    let value = b"\n=\n17 path=x\n";
    let bytes = [record("SCHILY.xattr.user.a=b", value), record("path", b"a")].concat();
    // The keyword ends at the first equals sign: writers escape those in names of attributes.
    let records = records(&bytes).unwrap();
    assert_eq!(records[&b"SCHILY.xattr.user.a"[..]], [b"b=", &value[..]].concat());
    assert_eq!(records[&b"path"[..]], b"a");
}

#[test]
fn an_empty_value_takes_back_what_was_said_but_for_attributes() {
    let bytes = [
        record("path", b"a"),
        record("path", b""),
        record("SCHILY.xattr.user.a", b""),
    ]
    .concat();
    let records = records(&bytes).unwrap();
    assert_eq!(
        records.keys().map(Vec::as_slice).collect::<Vec<_>>(),
        [b"SCHILY.xattr.user.a"]
    );
}

#[test]
fn records_that_lie_about_their_length_are_refused() {
    for bytes in [
        &b"x"[..],
        b"5 a=b",
        b"6 a=b\n ",
        b"999 a=b\n",
        b"1 a=b\n",
        b"0 a=b\n",
        b"18446744073709551616 a=b\n",
        b"+6 a=b\n",
        b"6 a-b\n",
        b" a=b\n",
    ] {
        assert!(records(bytes).is_err(), "{:?}", bytes.escape_ascii().to_string());
    }
    assert!(records(b"6 a=b\n").is_ok());
}

#[test]
fn times_have_nanoseconds_and_may_lie_before_1970() {
    let at = |seconds, nanoseconds| Some(Time { seconds, nanoseconds });
    for (text, expected) in [
        ("0", at(0, 0)),
        ("12", at(12, 0)),
        ("12.5", at(12, 500_000_000)),
        ("12.000000001", at(12, 1)),
        ("12.0000000019", at(12, 1)),
        ("-12", at(-12, 0)),
        ("-1.25", at(-2, 750_000_000)),
        ("-0.000000001", at(-1, 999_999_999)),
        ("9223372036854775807", at(i64::MAX, 0)),
        ("-9223372036854775807.9", at(i64::MIN, 100_000_000)),
        ("9223372036854775808", None),
        ("", None),
        ("-", None),
        (".5", None),
        ("1.x", None),
        ("1e3", None),
    ] {
        assert_eq!(time(text.as_bytes()), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn records_come_back_as_they_were_written(all in prop::collection::btree_map("[a-zA-Z.]{1,30}", prop::collection::vec(any::<u8>(), 1..200), 0..8)) {
        let bytes: Vec<u8> = all.iter().flat_map(|(keyword, value)| record(keyword, value)).collect();
        let expected: Records = all.into_iter().map(|(keyword, value)| (keyword.into_bytes(), value)).collect();
        prop_assert_eq!(records(&bytes).unwrap(), expected);
    }

    #[test]
    fn any_bytes_are_records_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (records(&bytes), time(&bytes), decimal(&bytes));
    }
}
