//! The exit of a client's own leaf, for a watcher that has no key of it.

use super::stored::{Signed, Stage};
use super::Service;
use crate::error::Error;
use crate::ldk::InstanceId;
use crate::watch::ExitFile;

impl Service {
    /// The API's `exit-file`.
    pub(super) fn export_exit(&self, id: &InstanceId) -> Result<ExitFile, Error> {
        let factory = self.found(id)?;
        match factory.state.stage {
            Stage::Funded | Stage::Live => {}
            Stage::Signed => return Err(Error::Conflict("the factory is not complete yet".into())),
            Stage::Closed | Stage::Exited | Stage::Void => {
                return Err(Error::Conflict("the factory has ended".into()))
            }
        }
        let first = match (&factory.signed, factory.leaves().first()) {
            (Signed::Client(_), Some(leaf)) => leaf.first,
            _ => return Err(Error::Conflict("only a client has a leaf of its own".into())),
        };
        self.exit_file(factory, first)
    }
}
