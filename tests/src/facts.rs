//! What a script in a container saw, as lines `key=value`.

use std::collections::BTreeMap;

/// Lines `key=value` that a script printed; others are passed over.
#[derive(Debug, Clone)]
pub struct Facts(pub BTreeMap<String, String>);

impl Facts {
    /// In this text.
    pub fn of(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Self(lines.map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect())
    }

    /// One value, which must be there.
    #[track_caller]
    pub fn get(&self, key: &str) -> &str {
        self.0
            .get(key)
            .unwrap_or_else(|| panic!("{key} is not in {:?}", self.0))
    }

    /// Fails the test unless all of these are as expected.
    #[track_caller]
    pub fn expect(&self, expected: &[(&str, &str)]) {
        let wrong: Vec<_> = expected
            .iter()
            .filter(|(key, value)| self.get(key) != *value)
            .collect();
        assert!(wrong.is_empty(), "expected {wrong:?} in {:?}", self.0);
    }
}
