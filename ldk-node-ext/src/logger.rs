//! LDK's log lines as `tracing` events, with peer, channel and payment as fields.

use lightning::util::logger::{Level, Logger as LdkLogger, Record};

/// Forwards to `tracing`.
#[derive(Debug, Default)]
pub struct Logger;

impl LdkLogger for Logger {
    fn log(&self, record: Record) {
        let peer = record.peer_id.map(|p| p.to_string());
        let channel = record.channel_id.map(|c| c.to_string());
        let module = record.module_path;
        let line = record.line;
        let text = record.args;
        macro_rules! emit {
            ($level: expr) => {
                tracing::event!(target: "ldk", $level, peer, channel, module, line, "{text}")
            };
        }
        match record.level {
            Level::Gossip | Level::Trace => emit!(tracing::Level::TRACE),
            Level::Debug => emit!(tracing::Level::DEBUG),
            Level::Info => emit!(tracing::Level::INFO),
            Level::Warn => emit!(tracing::Level::WARN),
            Level::Error => emit!(tracing::Level::ERROR),
        }
    }
}
