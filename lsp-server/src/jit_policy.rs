//! `jit-policy`: what is wanted otherwise for single clients.

use clap::Args;
use ldk_node_ext::api::ClientJitPolicy;
use ldk_node_ext::http::cli::Output;
use ldk_node_ext::http::{show, ApiClient, HttpError};
use serde_json::Value;

/// Flags of `jit-policy`; what is not given follows the settings.
#[derive(Args, Clone, Debug, Default)]
pub struct JitPolicyArgs {
    /// The client's node id
    #[arg(value_name = "NODE_ID")]
    pub client: Option<String>,
    /// Let the settings hold for it again
    #[arg(long, requires = "client", conflicts_with = "own")]
    pub clear: bool,
    /// What is to be otherwise.
    #[command(flatten)]
    pub own: OwnJit,
}

/// What is to be otherwise for a client.
#[derive(Args, Clone, Debug, Default)]
#[group(id = "own", required = false, multiple = true, requires = "client")]
pub struct OwnJit {
    /// Try a leaf advance before a JIT channel
    #[arg(long, value_name = "BOOL")]
    pub rotate_first: Option<bool>,
    /// Smallest JIT channel, sat
    #[arg(long, value_name = "SAT")]
    pub min_channel_sat: Option<u64>,
    /// Largest JIT channel, sat; 0: none are opened
    #[arg(long, value_name = "SAT")]
    pub max_channel_sat: Option<u64>,
    /// Most JIT channels at a time; 0: none are opened
    #[arg(long, value_name = "N")]
    pub max_channels: Option<u32>,
    /// Most of this node's money in its JIT channels, sat
    #[arg(long, value_name = "SAT")]
    pub max_total_sat: Option<u64>,
    /// JIT channels over which nothing has been taken yet, at which it gets no other one
    #[arg(long, value_name = "N")]
    pub max_untaken: Option<u32>,
    /// Most that are opened in 144 blocks, whatever became of them
    #[arg(long, value_name = "N")]
    pub max_per_day: Option<u32>,
    /// What a new channel has beyond what the payment needs, percent of that
    #[arg(long, value_name = "PERCENT")]
    pub headroom_percent: Option<u32>,
    /// How long a payment is held for it, seconds
    #[arg(long, value_name = "SECONDS")]
    pub hold_secs: Option<u64>,
}

impl OwnJit {
    /// The policy these flags stand for.
    fn of(self, node_id: String) -> ClientJitPolicy {
        ClientJitPolicy {
            node_id,
            jit_rotate_first: self.rotate_first,
            jit_min_channel_sat: self.min_channel_sat,
            jit_max_channel_sat: self.max_channel_sat,
            jit_max_channels: self.max_channels,
            jit_max_total_sat: self.max_total_sat,
            jit_max_untaken: self.max_untaken,
            jit_max_per_day: self.max_per_day,
            jit_headroom_percent: self.headroom_percent,
            jit_hold_secs: self.hold_secs,
        }
    }
}

impl JitPolicyArgs {
    /// Runs the command and prints its outcome.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn execute(self, client: &ApiClient, output: Output) -> Result<(), HttpError> {
        let path = "/v1/jit/policy";
        let Some(node_id) = self.client else {
            let all: Vec<ClientJitPolicy> = client.get(path)?;
            return output.show(&all, |all| show::jit_policies(all));
        };
        let policy = self.own.of(node_id);
        if policy == (ClientJitPolicy { node_id: policy.node_id.clone(), ..Default::default() })
            && !self.clear
        {
            let mut all: Vec<ClientJitPolicy> = client.get(path)?;
            all.retain(|own| own.node_id == policy.node_id);
            return output.show(&all, |all| show::jit_policies(all));
        }
        let answer: Value = client.post(path, &policy)?;
        output.show(&answer, |_| if self.clear { "as the settings say" } else { "set" }.to_owned())
    }
}
