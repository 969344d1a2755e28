//! Versioned JSON records.

use lightning::util::persist::KVStoreSync;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A record with its version in front.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

/// Writes a record; when this returns it is on disk.
///
/// # Errors
/// [`Error::Store`].
pub fn put<T: Serialize>(
    store: &impl KVStoreSync,
    namespace: &str,
    key: &str,
    version: u32,
    record: &T,
) -> Result<(), Error> {
    let bytes = encode(version, record).map_err(|e| Error::Store(format!("{namespace}/{key}: {e}")))?;
    store.write(namespace, "", key, bytes).map_err(|e| super::error(&format!("{namespace}/{key}"), &e))
}

/// The bytes of a record.
///
/// # Errors
/// A record that is no JSON.
pub(crate) fn encode<T: Serialize>(version: u32, record: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Versioned { version, record })
}

/// Reads a record of this version, `None` when there is none.
///
/// # Errors
/// [`Error::Corrupt`] when it is of another version or not readable.
pub fn get<T: DeserializeOwned>(
    store: &impl KVStoreSync,
    namespace: &str,
    key: &str,
    version: u32,
) -> Result<Option<T>, Error> {
    let Some(bytes) = super::read_opt(store, namespace, "", key)
        .map_err(|e| super::error(&format!("{namespace}/{key}"), &e))?
    else {
        return Ok(None);
    };
    decode(namespace, key, version, &bytes).map(Some)
}

/// Reads the bytes of a record of this version.
///
/// # Errors
/// [`Error::Corrupt`] when it is of another version or not readable.
pub(crate) fn decode<T: DeserializeOwned>(
    namespace: &str,
    key: &str,
    version: u32,
    bytes: &[u8],
) -> Result<T, Error> {
    let corrupt = |reason: String| Error::Corrupt { key: format!("{namespace}/{key}"), reason };
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if head.version != version {
        return Err(corrupt(format!("version {}, this software reads {version}", head.version)));
    }
    let full: Versioned<T> = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    Ok(full.record)
}

/// All records of a namespace with their keys.
///
/// # Errors
/// As [`get`].
pub fn all<T: DeserializeOwned>(
    store: &impl KVStoreSync,
    namespace: &str,
    version: u32,
) -> Result<Vec<(String, T)>, Error> {
    let keys = store.list(namespace, "").map_err(|e| super::error(namespace, &e))?;
    let mut out = Vec::with_capacity(keys.len());
    for key in keys {
        if let Some(record) = get(store, namespace, &key, version)? {
            out.push((key, record));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn another_version_or_torn_bytes_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        put(&store, "things", "a", 2, &vec![1u8]).unwrap();
        assert_eq!(get::<Vec<u8>>(&store, "things", "a", 2).unwrap(), Some(vec![1]));
        assert_eq!(get::<Vec<u8>>(&store, "things", "b", 2).unwrap(), None);
        let e = get::<Vec<u8>>(&store, "things", "a", 1).unwrap_err().to_string();
        assert!(e.contains("things/a") && e.contains("version 2"), "{e}");
        store.write("things", "", "a", b"{\"version\":2,\"rec".to_vec()).unwrap();
        let e = get::<Vec<u8>>(&store, "things", "a", 2).unwrap_err();
        assert!(matches!(e, Error::Corrupt { .. }), "{e}");
    }
}
