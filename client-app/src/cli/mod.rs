//! Settings, routes and commands of the command-line wallet.

pub mod commands;
pub mod init;
pub mod settings;
