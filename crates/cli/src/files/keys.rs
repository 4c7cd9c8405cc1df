//! The keys of a JSON object, only to find one that comes twice: maps would silently keep the last.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// Where settings stand in the header of a .safetensors file: an object of its own.
const METADATA: &str = "__metadata__";

/// What was found.
pub(super) struct Keys {
    pub(super) duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys { duplicate: None })
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == METADATA {
                self.duplicate = map.next_value::<Keys>()?.duplicate.or(self.duplicate);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if !seen.insert(key.clone()) {
                self.duplicate = Some(key);
            }
        }
        Ok(self)
    }
}
