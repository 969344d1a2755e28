//! The commands that only an LSP has.

use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use ldk_node_ext::api::{
    ClientAdmission, ConnectRequest, CreateFactoryRequest, FactoryClientRequest, JitStatus, LiquidityAnswer,
    LiquidityRequest, NodeLevel, OpenChannelRequest, ParamsOverride, ReadmitRequest, RotateRequest, Rotation,
    WaitingClient,
};
use ldk_node_ext::http::cli::{
    closing, creating, leaf_of, rotating, the_factory, ExitArgs, Output, WaitArgs,
};
use ldk_node_ext::http::{show, ApiClient, HttpError};
use serde_json::{json, Value};

use crate::jit_policy::JitPolicyArgs;

/// Commands against a running LSP.
#[derive(Subcommand, Clone, Debug)]
pub enum LspCommand {
    /// Clients that are connected, and which of them wait for a factory
    Clients,
    /// Clients that failed in ceremonies and closes lately, and which of them are paused for it
    Admission,
    /// Forget what a client has failed at, and invite it again
    Readmit {
        /// The client's node id
        #[arg(value_name = "NODE_ID")]
        client: String,
    },
    /// Channels beside the factories: who has them and why, what they have cost, and what was decided
    Jit,
    /// Have other JIT channels for one client than the settings say; without a client: show who has such a policy
    JitPolicy(JitPolicyArgs),
    /// Make a factory, and wait until it is alive
    #[command(group = ArgGroup::new("whom").required(true))]
    CreateFactory(CreateFactoryArgs),
    /// Close a factory by agreement of all, and wait until the closing transaction is confirmed
    CloseFactory {
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Give a client's leaf, or a node above it, a newer state, and wait until the client has it; payments go on meanwhile
    Rotate {
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Node id of a client of the leaf
        #[arg(long, value_name = "NODE_ID")]
        client: String,
        /// Which node above the client: leaf, branch, root, or its level, 0 for the root
        #[arg(long, value_name = "LEVEL", default_value = "leaf")]
        level: NodeLevel,
        /// Also with a client that has just made a rotation fail, and used an update up with it
        #[arg(long)]
        force: bool,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Give a client's channel more inbound liquidity or take some back, and wait until it has another capacity
    Liquidity {
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Node id of the client
        #[arg(long, value_name = "NODE_ID")]
        client: String,
        /// By how much the channel grows, sat; negative to take back
        #[arg(long, value_name = "SAT", allow_hyphen_values = true)]
        change_sat: i64,
        /// Node id of the client whose channel it comes from or goes to; the stock of the leaf if not given
        #[arg(long, value_name = "NODE_ID")]
        from: Option<String>,
        /// Which node above the client advances: leaf, branch, root, or its level, 0 for the root
        #[arg(long, value_name = "LEVEL", default_value = "leaf")]
        level: NodeLevel,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Leave one client by its path, and wait until the money is in the wallet; the others live on
    Exit {
        /// The client's node id
        #[arg(long, value_name = "NODE_ID")]
        client: String,
        /// Which factory, budget, whether to wait.
        #[command(flatten)]
        args: ExitArgs,
    },
    /// Connect to a node
    Connect {
        /// NODE_ID@HOST:PORT
        peer: Peer,
    },
    /// Open an ordinary channel
    OpenChannel {
        /// NODE_ID@HOST:PORT, or NODE_ID of a connected node
        peer: PeerOrId,
        /// Capacity, sat
        #[arg(long, value_name = "SAT")]
        capacity_sat: u64,
        /// Given to the other side at birth, sat
        #[arg(long, value_name = "SAT", default_value_t = 0)]
        push_sat: u64,
        /// Announce it to the network
        #[arg(long)]
        announce: bool,
    },
}

/// Flags of `create-factory`.
#[derive(Args, Clone, Debug, Default)]
pub struct CreateFactoryArgs {
    /// With every client that waits; takes --capacity-sat
    #[arg(long, group = "whom", requires = "capacity_sat")]
    pub all: bool,
    /// One client: NODE_ID:CAPACITY_SAT or NODE_ID:CAPACITY_SAT:PUSH_SAT; again for each
    #[arg(long, value_name = "CLIENT", group = "whom")]
    pub client: Vec<ClientSpec>,
    /// Capacity of each channel with --all, sat
    #[arg(long, value_name = "SAT", requires = "all")]
    pub capacity_sat: Option<u64>,
    /// Given to each client at birth with --all, sat
    #[arg(long, value_name = "SAT", requires = "all")]
    pub push_sat: Option<u64>,
    /// Liquidity stock of each leaf, sat
    #[arg(long, value_name = "SAT")]
    pub stock_sat: Option<u64>,
    /// Clients of a leaf
    #[arg(long, value_name = "N")]
    pub clients_per_leaf: Option<u16>,
    /// Children at each interior level, root first, as 8,4
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub arity: Option<Vec<u16>>,
    /// State layers of each level, root first, as JSON: a list of layers per level, a layer being
    /// states, step and base delay, as `[[],[[2,48,96],[2,48,0]]]`
    #[arg(long, value_name = "JSON")]
    pub layers: Option<Layers>,
    /// Active period, blocks
    #[arg(long, value_name = "BLOCKS")]
    pub active: Option<u32>,
    /// Dying period, blocks
    #[arg(long, value_name = "BLOCKS")]
    pub dying: Option<u32>,
    /// Margin added to the worst exit, blocks
    #[arg(long, value_name = "BLOCKS")]
    pub margin: Option<u32>,
    /// Depth of the funding before channels are ready, blocks
    #[arg(long, value_name = "BLOCKS")]
    pub min_depth: Option<u16>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

impl CreateFactoryArgs {
    /// The request these flags stand for.
    pub fn request(self) -> CreateFactoryRequest {
        let params = ParamsOverride {
            clients_per_leaf: self.clients_per_leaf,
            arity: self.arity,
            layers: self.layers.map(|l| l.0),
            active: self.active,
            dying: self.dying,
            margin: self.margin,
            min_depth: self.min_depth,
        };
        CreateFactoryRequest {
            clients: self.client.into_iter().map(|c| c.0).collect(),
            all: self.all,
            capacity_sat: self.capacity_sat,
            push_sat: self.push_sat,
            stock_sat: self.stock_sat,
            params: (params != ParamsOverride::default()).then_some(params),
        }
    }
}

/// State layers of each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(Vec<Vec<[u16; 3]>>);

impl FromStr for Layers {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map(Self)
    }
}

/// One client of a factory to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSpec(FactoryClientRequest);

impl FromStr for ClientSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |name: &str, text: &str| {
            text.parse::<u64>().map_err(|_| format!("{name} = {text} is not a number of satoshi"))
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (node_id, capacity, push) = match parts.as_slice() {
            [node_id, capacity] => (node_id, capacity, None),
            [node_id, capacity, push] => (node_id, capacity, Some(push)),
            _ => return Err("must be NODE_ID:CAPACITY_SAT or NODE_ID:CAPACITY_SAT:PUSH_SAT".into()),
        };
        Ok(Self(FactoryClientRequest {
            node_id: (*node_id).to_owned(),
            capacity_sat: number("capacity_sat", capacity)?,
            push_sat: push.map_or(Ok(0), |push| number("push_sat", push))?,
        }))
    }
}

/// A node to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer(ConnectRequest);

impl FromStr for Peer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node_id, address) = text.split_once('@').ok_or("must be NODE_ID@HOST:PORT")?;
        Ok(Self(ConnectRequest { node_id: node_id.to_owned(), address: address.to_owned() }))
    }
}

/// A node to open a channel with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerOrId {
    node_id: String,
    address: Option<String>,
}

impl From<&str> for PeerOrId {
    fn from(text: &str) -> Self {
        match text.split_once('@') {
            Some((id, address)) => Self { node_id: id.to_owned(), address: Some(address.to_owned()) },
            None => Self { node_id: text.to_owned(), address: None },
        }
    }
}

impl LspCommand {
    /// Runs the command and prints its outcome.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn execute(self, client: &ApiClient, output: Output) -> Result<(), HttpError> {
        match self {
            Self::Clients => {
                let list: Vec<WaitingClient> = client.get("/v1/clients")?;
                output.show(&list, |list| show::clients(list))
            }
            Self::Admission => {
                let list: Vec<ClientAdmission> = client.get("/v1/admission")?;
                output.show(&list, |list| show::admission(list))
            }
            Self::Readmit { client: whom } => {
                let request = ReadmitRequest { node_id: whom };
                let answer: Value = client.post("/v1/admission/readmit", &request)?;
                output.show(&answer, |_| "admitted again".into())
            }
            Self::Jit => {
                let status: JitStatus = client.get("/v1/jit")?;
                output.show(&status, show::jit)
            }
            Self::JitPolicy(args) => args.execute(client, output),
            Self::CreateFactory(args) => create_factory(client, output, args),
            Self::CloseFactory { instance_id, wait } => {
                let id = the_factory(client, instance_id.as_deref())?;
                let answer: Value = client.post(&format!("/v1/factories/{id}/close"), &json!({}))?;
                if wait.no_wait {
                    return output.show(&answer, |_| format!("factory {id} is being closed"));
                }
                let factory = closing(client, &id, wait)?;
                output.show(&factory, |f| f.close.as_ref().map_or("closed".into(), show::close_text))
            }
            Self::Rotate { instance_id, client: whose, level, force, wait } => {
                let id = the_factory(client, instance_id.as_deref())?;
                let request = RotateRequest { client: whose.clone(), level, force };
                let begun: Rotation = client.post(&format!("/v1/factories/{id}/rotate"), &request)?;
                if wait.no_wait {
                    return output.show(&begun, |_| format!("the leaf of {whose} is being rotated"));
                }
                let factory = rotating(client, &id, (whose.as_str(), begun.from), wait)?;
                output.show(&factory, |f| leaf_of(f, &whose).map_or("rotated".into(), show::leaf))
            }
            Self::Liquidity { instance_id, client: whose, change_sat, from, level, wait } => {
                let id = the_factory(client, instance_id.as_deref())?;
                let request = LiquidityRequest { client: Some(whose.clone()), change_sat, from, level };
                let begun: LiquidityAnswer =
                    client.post(&format!("/v1/factories/{id}/liquidity"), &request)?;
                let text = format!("the channel of {whose}: {} sat", begun.capacity_sat);
                if wait.no_wait {
                    return output.show(&begun, |_| format!("{text}, under way"));
                }
                let factory = rotating(client, &id, (whose.as_str(), begun.from), wait)?;
                output.show(&factory, |_| text)
            }
            Self::Exit { client: whose, args } => args.execute(client, output, Some(whose)),
            Self::Connect { peer } => {
                let answer: Value = client.post("/v1/connect", &peer.0)?;
                output.show(&answer, |_| "connected".into())
            }
            Self::OpenChannel { peer, capacity_sat, push_sat, announce } => {
                let PeerOrId { node_id, address } = peer;
                let request = OpenChannelRequest { node_id, address, capacity_sat, push_sat, announce };
                let answer: Value = client.post("/v1/channels", &request)?;
                output.show(&answer, |a| {
                    format!("opening, user channel id {}", a["user_channel_id"].as_str().unwrap_or_default())
                })
            }
        }
    }
}

fn create_factory(client: &ApiClient, output: Output, args: CreateFactoryArgs) -> Result<(), HttpError> {
    let wait = args.wait;
    let answer: Value = client.post("/v1/factories", &args.request())?;
    let id = answer["instance_id"].as_str().unwrap_or_default().to_owned();
    if wait.no_wait {
        return output.show(&answer, |_| format!("factory {id} is being made"));
    }
    let factory = creating(client, &id, wait)?;
    output.show(&factory, show::factory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_read_with_amounts() {
        let spec: ClientSpec = "02aa:50000:1000".parse().unwrap();
        assert_eq!(
            spec.0,
            FactoryClientRequest { node_id: "02aa".into(), capacity_sat: 50_000, push_sat: 1000 }
        );
        assert_eq!("02aa:5".parse::<ClientSpec>().unwrap().0.push_sat, 0);
        for wrong in ["02aa", "02aa:", "02aa:x", "02aa:1:2:3", "02aa:-1"] {
            assert!(wrong.parse::<ClientSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn layers_are_json() {
        let layers: Layers = "[[],[[2,48,96],[2,48,0]]]".parse().unwrap();
        assert_eq!(layers.0, vec![vec![], vec![[2, 48, 96], [2, 48, 0]]]);
        assert!("[[2,48]]".parse::<Layers>().is_err());
    }
}
