//! The small files of the data directory through which a process and its command line find each other.
//!
//! `api-token` holds the bearer token and is made at the first start; `api-address` and
//! `listen-address` are written when the process is ready and removed at an orderly end. Each is
//! written to a temporary file and renamed, so that a reader never sees half of one, and is readable
//! by its owner alone.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rand::RngCore;

use super::HttpError;
use crate::store::private_dir;
use crate::util;

/// Name of the file with the bearer token.
pub const TOKEN_FILE: &str = "api-token";
/// Name of the file with the API's address.
pub const API_ADDRESS_FILE: &str = "api-address";
/// Name of the file with the Lightning address.
pub const LISTEN_ADDRESS_FILE: &str = "listen-address";
/// Length of the token, hexadecimal digits (32 bytes).
pub const TOKEN_DIGITS: usize = 64;

/// The bearer token of the API.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Reads the token of a data directory.
    ///
    /// # Errors
    /// [`HttpError::File`] if there is none, [`HttpError::TokenMode`] if others may read it,
    /// [`HttpError::TokenFormat`] if it is not one.
    pub fn read(data_dir: &Path) -> Result<Self, HttpError> {
        let path = data_dir.join(TOKEN_FILE);
        let mode = fs::metadata(&path).map_err(HttpError::file("read", &path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(HttpError::TokenMode { path, mode });
        }
        let text = fs::read_to_string(&path).map_err(HttpError::file("read", &path))?;
        let digits = text.trim();
        if digits.len() != TOKEN_DIGITS || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(HttpError::TokenFormat { path });
        }
        Ok(Self(digits.to_owned()))
    }

    /// Reads the token of a data directory, or makes one if there is none.
    ///
    /// # Errors
    /// As [`Token::read`], and [`HttpError::File`] if it cannot be written.
    pub fn read_or_create(data_dir: &Path) -> Result<Self, HttpError> {
        match Self::read(data_dir) {
            Err(HttpError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0u8; TOKEN_DIGITS / 2];
                rand::rng().fill_bytes(&mut bytes);
                write_private(&data_dir.join(TOKEN_FILE), &format!("{}\n", hex::encode(bytes)))?;
                Self::read(data_dir)
            }
            other => other,
        }
    }

    /// The value of the `Authorization` header.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether an `Authorization` header carries this token. The time it takes tells nothing about
    /// how many digits are right.
    pub fn matches(&self, header: &[u8]) -> bool {
        let Some(given) = header.strip_prefix(b"Bearer ") else { return false };
        let own = self.0.as_bytes();
        if given.len() != own.len() {
            return false;
        }
        let difference = own.iter().zip(given).fold(0u8, |acc, (a, b)| std::hint::black_box(acc | (a ^ b)));
        difference == 0
    }
}

/// Makes a data directory that only its owner can enter; one that exists is left as it is.
///
/// # Errors
/// [`HttpError::File`].
pub fn create_data_dir(data_dir: &Path) -> Result<(), HttpError> {
    private_dir(data_dir).map_err(HttpError::file("create", data_dir))
}

/// Writes a file whole or not at all, with mode 600.
///
/// # Errors
/// [`HttpError::File`].
pub fn write_private(path: &Path, text: &str) -> Result<(), HttpError> {
    util::write_private(path, text).map_err(HttpError::file("write", path))
}

/// The address files of a running process; removed when this is dropped.
#[derive(Debug)]
pub struct AddressFiles {
    data_dir: std::path::PathBuf,
}

impl AddressFiles {
    /// Removes what a process that was killed has left behind.
    ///
    /// # Errors
    /// [`HttpError::File`] if a file is there and cannot be removed.
    pub fn prepare(data_dir: &Path) -> Result<Self, HttpError> {
        for name in [API_ADDRESS_FILE, LISTEN_ADDRESS_FILE] {
            let path = data_dir.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(HttpError::file("remove", &path)(e))
                }
                _ => {}
            }
        }
        Ok(Self { data_dir: data_dir.to_owned() })
    }

    /// Writes both, the API's last: who sees it finds everything ready.
    ///
    /// # Errors
    /// [`HttpError::File`].
    pub fn write(&self, api: SocketAddr, listen: Option<SocketAddr>) -> Result<(), HttpError> {
        if let Some(listen) = listen {
            write_private(&self.data_dir.join(LISTEN_ADDRESS_FILE), &format!("{listen}\n"))?;
        }
        write_private(&self.data_dir.join(API_ADDRESS_FILE), &format!("{api}\n"))
    }
}

impl Drop for AddressFiles {
    fn drop(&mut self) {
        for name in [LISTEN_ADDRESS_FILE, API_ADDRESS_FILE] {
            let path = self.data_dir.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), error = %e, "cannot remove file")
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Token::read_or_create(dir.path()).unwrap();
        let second = Token::read_or_create(dir.path()).unwrap();
        assert_eq!(first.header(), second.header());
        let mode = fs::metadata(dir.path().join(TOKEN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn token_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Token::read_or_create(dir.path()).unwrap();
        let path = dir.path().join(TOKEN_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Token::read(dir.path()), Err(HttpError::TokenMode { mode: 0o640, .. })));
    }

    #[test]
    fn broken_token_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        write_private(&dir.path().join(TOKEN_FILE), "abc\n").unwrap();
        assert!(matches!(Token::read_or_create(dir.path()), Err(HttpError::TokenFormat { .. })));
        assert_eq!(fs::read_to_string(dir.path().join(TOKEN_FILE)).unwrap(), "abc\n");
    }

    #[test]
    fn only_the_whole_token_matches() {
        let token = Token("0f".repeat(32));
        assert!(token.matches(token.header().as_bytes()));
        assert!(!token.matches(b""));
        assert!(!token.matches(b"Bearer "));
        assert!(!token.matches("0f".repeat(32).as_bytes()), "scheme missing");
        assert!(!token.matches(format!("Bearer {}", "0f".repeat(31)).as_bytes()));
        let mut wrong = token.header();
        wrong.replace_range(wrong.len() - 1.., "e");
        assert!(!token.matches(wrong.as_bytes()));
    }

    #[test]
    fn address_files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(API_ADDRESS_FILE), "stale").unwrap();
        let files = AddressFiles::prepare(dir.path()).unwrap();
        assert!(!dir.path().join(API_ADDRESS_FILE).exists());
        let address: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        files.write(address, Some(address)).unwrap();
        for name in [API_ADDRESS_FILE, LISTEN_ADDRESS_FILE] {
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "127.0.0.1:4000\n");
        }
        drop(files);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
