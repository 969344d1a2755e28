//! The one error type of this crate.

/// Why a client could not be made, or refused what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The builder was not told something it needs.
    #[error("{field} is not set")]
    Missing {
        /// The builder's method that was not called.
        field: &'static str,
    },
    /// The LSP's address cannot be read.
    #[error("lsp = {value}: {reason}")]
    LspAddress {
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The node refused; [`ldk_node_ext::Error::kind`] tells the class.
    #[error(transparent)]
    Node(#[from] ldk_node_ext::Error),
}
