//! Extended attributes in the body of an inode.
//!
//! ```text
//!   header: 12 bytes, no shared attributes │ entry │ entry │ …
//!   entry:  name length u8 │ prefix u8 │ value length u16 │ name without prefix │ value │ zeros to a multiple of 4
//! ```

use crate::tree::XattrSet;

const HEADER_LEN: usize = 12;

/// Longest area that the field `i_xattr_icount` can count.
pub(super) const LONGEST: usize = HEADER_LEN + 4 * (u16::MAX as usize - 1);

/// Prefixes that are stored as a number; the first that fits counts.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The area for a set of attributes; empty for none.
pub(super) fn encode(set: &XattrSet) -> Vec<u8> {
    if set.is_empty() {
        return Vec::new();
    }
    let mut area = vec![0; HEADER_LEN];
    for (name, value) in set {
        let (prefix, index) = PREFIXES
            .into_iter()
            .find(|(prefix, _)| name.starts_with(prefix))
            .expect("the scan keeps no other namespaces");
        let rest = &name[prefix.len()..];
        // Names have at most 255 bytes (kernel), values at most 65535 (scan).
        area.extend([rest.len() as u8, index]);
        area.extend((value.len() as u16).to_le_bytes());
        area.extend_from_slice(rest);
        area.extend_from_slice(value);
        area.resize(area.len().next_multiple_of(4), 0);
    }
    area
}

/// The field `i_xattr_icount` for an area of `len` bytes, at most [`LONGEST`].
pub(super) fn count(len: usize) -> u16 {
    if len == 0 {
        0
    } else {
        ((len - HEADER_LEN) / 4 + 1) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry() {
        let set = vec![(b"user.a".to_vec(), b"xyz".to_vec())];
        let area = encode(&set);
        assert_eq!(area[12..], *b"\x01\x01\x03\x00axyz");
        assert_eq!(count(area.len()), 3);
        assert_eq!((count(0), count(LONGEST)), (0, u16::MAX));
    }

    #[test]
    fn access_control_lists_have_no_name() {
        let set = vec![(b"system.posix_acl_default".to_vec(), vec![7; 5])];
        assert_eq!(encode(&set)[12..], [0, 3, 5, 0, 7, 7, 7, 7, 7, 0, 0, 0]);
    }
}
