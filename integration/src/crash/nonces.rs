//! Secret nonces: drawn once, used once, whatever crashes come between.
//!
//! The programs under test note every public nonce when its secret is drawn and when it signs
//! ([`factory_core::musig::NONCES`]); the file outlives the process. A secret that came back after a restart, or that
//! signed twice, would show as a line that is there twice.

use std::collections::HashSet;
use std::fs;

use anyhow::{bail, Context, Result};
use factory_core::musig::NONCES;

use crate::{Daemon, World};

/// Checks what every process has noted so far. Returns how many nonces have signed.
///
/// # Errors
/// If one was drawn or has signed twice, by whichever processes, or one has signed that was not drawn.
pub fn check(world: &World) -> Result<usize> {
    let (mut drawn, mut signed) = (HashSet::new(), HashSet::new());
    let clients = world.clients.iter().map(|client| -> &Daemon { client });
    for daemon in std::iter::once::<&Daemon>(&world.lsp).chain(clients) {
        let name = daemon.name();
        let file = daemon.faults().folder().join(NONCES);
        let text = match fs::read_to_string(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("read {}", file.display()))?,
        };
        for line in text.lines() {
            let fresh = match line.split_once(' ') {
                Some(("drawn", nonce)) => drawn.insert(nonce.to_owned()),
                Some(("signed", nonce)) if drawn.contains(nonce) => signed.insert(nonce.to_owned()),
                _ => bail!("{name} has signed with what was not drawn: {line}"),
            };
            if !fresh {
                bail!("{name} has used a nonce twice: {line}");
            }
        }
    }
    Ok(signed.len())
}
