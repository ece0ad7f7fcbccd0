//! Hash tables whose keys no other clone has.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

use crate::random::random;

/// Keys for a hash table, drawn from [`random()`]: no other clone has them if they are drawn after the
/// restore.
///
/// std's `RandomState` does not give such. It draws keys once per thread and counts on from there,
/// and on the thread that serves it has drawn them before `main`, for the environment: the tables of
/// all clones have the same keys, and who finds out what collides in one has found it for all.
///
/// ```
/// use std::collections::HashMap;
///
/// let mut sent_by_strangers = HashMap::with_hasher(dormouse_guest::HashKeys::draw());
/// sent_by_strangers.insert("name", "value");
/// ```
#[derive(Clone)]
pub struct HashKeys([u8; 16]);

impl HashKeys {
    /// Draws keys: in a handler, or in an [`after_restore`](crate::after_restore) hook.
    #[must_use]
    pub fn draw() -> Self {
        let mut keys = [0; 16];
        random(&mut keys);
        Self(keys)
    }
}

impl std::fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeys(secret)")
    }
}

impl BuildHasher for HashKeys {
    type Hasher = DefaultHasher;

    /// std takes no keys for its SipHash. Hashed first they do the same: its state is as secret then
    /// as they are.
    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.0);
        hasher
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_alike_with_their_copy_and_otherwise_with_others() {
        let keys = HashKeys::draw();
        let hash = keys.hash_one("a name");
        assert_eq!(keys.clone().hash_one("a name"), hash);
        assert_ne!(keys.hash_one("another"), hash);
        assert_ne!(HashKeys::draw().hash_one("a name"), hash);
    }

    #[test]
    fn keys_are_not_printed() {
        let keys = HashKeys([0xAB; 16]);
        assert_eq!(format!("{keys:?}"), "HashKeys(secret)");
    }
}
