//! `lsp-server` and `client-app` processes, started as an operator starts them and asked over their local API.

mod looks;
mod programs;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use factory_core::faults::VARIABLE;
use serde::Deserialize;
use serde_json::{json, Value};

use crate::faults::Faults;
use crate::http::Api;
use crate::process::Proc;
use crate::types::{Balance, Channel, Event, Factory, Info, Invoice, Offer, Payment};
use crate::wait::{self, Seen};
use crate::Bitcoind;

pub(crate) use programs::{bitcoind_flags, log_filter};
pub use programs::{Client, Lsp};

/// How often the daemons ask bitcoind for a new block, ms. Hundreds of them have to ask less often.
pub(crate) fn poll_ms() -> String {
    std::env::var("SCENARIO_POLL_MS").unwrap_or_else(|_| "200".into())
}

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an API call may last: longer than the longest payment is waited for.
const CALL: Duration = Duration::from_secs(180);

/// What both programs have: a process, a data folder and the local API.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    process: Proc,
    data_dir: PathBuf,
    node_id: String,
    api: Option<Api>,
    faults: Faults,
}

impl Daemon {
    fn new(name: &str, process: Proc, data_dir: PathBuf) -> Result<Self> {
        let faults = Faults::new(&data_dir.with_extension("faults"), name)?;
        let process = process.env(VARIABLE, &faults.folder().to_string_lossy());
        Ok(Self { name: name.to_owned(), process, data_dir, node_id: String::new(), api: None, faults })
    }

    /// What this process is made to do wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Waits until it has died, at a fail point that kills.
    ///
    /// # Errors
    /// If it still runs after a minute, or ended in another way than by SIGKILL.
    pub fn wait_killed(&mut self) -> Result<()> {
        self.api = None;
        let status = self.process.wait_exit(PATIENCE)?;
        if status.signal() != Some(9) {
            bail!("{} ended with {status}, not by SIGKILL", self.name);
        }
        Ok(())
    }

    /// Whether it has died at a fail point that kills.
    ///
    /// # Errors
    /// If it has ended in another way.
    pub fn was_killed(&mut self) -> Result<bool> {
        if self.process.is_running()? {
            return Ok(false);
        }
        self.wait_killed().map(|()| true)
    }

    /// Starts it and waits until its API answers.
    ///
    /// # Errors
    /// If it runs already or does not come up; with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        // What an earlier run left would lead to a port that is no longer its own.
        let address_file = self.data_dir.join("api-address");
        match fs::remove_file(&address_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.process.start()?;
        let (process, data_dir) = (&mut self.process, &self.data_dir);
        let mut dead = None;
        let found = wait::until(&format!("the API of {}", self.name), PATIENCE, || {
            if let Err(error) = process.expect_running() {
                dead = Some(error);
                return Ok(Seen::Done(None));
            }
            let address = fs::read_to_string(&address_file).context("read api-address")?;
            let token = fs::read_to_string(data_dir.join("api-token")).context("read api-token")?;
            let api = Api::new(address.trim(), token.trim(), CALL);
            let info: Info = api.get("/v1/info")?;
            Ok(Seen::Done(Some((api, info.node_id))))
        })?;
        if let Some(error) = dead {
            return Err(error);
        }
        let (api, node_id) = found.ok_or_else(|| anyhow!("{} did not start", self.name))?;
        if !self.node_id.is_empty() && self.node_id != node_id {
            bail!("{} came back as another node: {node_id}, before {}", self.name, self.node_id);
        }
        self.node_id = node_id;
        self.api = Some(api);
        Ok(())
    }

    /// Stops it, puts these settings into its config file (values as TOML has them) and starts it again.
    ///
    /// # Errors
    /// If it does not stop or does not come up.
    pub fn restart_with<T: std::fmt::Display>(&mut self, settings: &[(&str, T)]) -> Result<()> {
        self.stop()?;
        let file = self.data_dir.join("config.toml");
        let old = match fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("read {}", file.display()))?,
        };
        let of_a_setting = |line: &str| settings.iter().any(|(key, _)| line.starts_with(&format!("{key} =")));
        let kept = old.lines().filter(|line| !of_a_setting(line)).map(str::to_owned);
        let new = settings.iter().map(|(key, value)| format!("{key} = {value}"));
        fs::write(&file, kept.chain(new).map(|line| line + "\n").collect::<String>())?;
        self.start()
    }

    /// Stops it in order (SIGTERM).
    ///
    /// # Errors
    /// If it does not end in time, or with an error code.
    pub fn stop(&mut self) -> Result<()> {
        self.api = None;
        self.process.terminate(PATIENCE)
    }

    /// Waits until it has ended by itself, on a `stop` that somebody sent.
    ///
    /// # Errors
    /// If it still runs after a minute, or ended with an error code.
    pub fn wait_end(&mut self) -> Result<()> {
        self.api = None;
        let status = self.process.wait_exit(PATIENCE)?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.api = None;
        self.process.kill()
    }

    /// Freezes the process: its connections stand, but it does not answer.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.freeze()
    }

    /// Lets it go on after [`Daemon::freeze`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn thaw(&mut self) -> Result<()> {
        self.process.thaw()
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Node id, hex.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process id.
    ///
    /// # Errors
    /// If it is not running.
    pub fn process_id(&self) -> Result<u32> {
        self.process.id().ok_or_else(|| anyhow!("{} is not running", self.name))
    }

    /// Whether it was started and not ended.
    pub fn is_up(&self) -> bool {
        self.api.is_some()
    }

    /// The API of the running process.
    ///
    /// # Errors
    /// If it is not running.
    pub fn api(&self) -> Result<&Api> {
        self.api.as_ref().ok_or_else(|| anyhow!("{} is not running", self.name))
    }

    /// `GET /v1/info`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn info(&self) -> Result<Info> {
        self.api()?.get("/v1/info")
    }

    /// `GET /v1/balance`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn balance(&self) -> Result<Balance> {
        self.api()?.get("/v1/balance")
    }

    /// `GET /v1/channels`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn channels(&self) -> Result<Vec<Channel>> {
        self.api()?.get("/v1/channels")
    }

    /// `GET /v1/factories`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn factories(&self) -> Result<Vec<Factory>> {
        self.api()?.get("/v1/factories")
    }

    /// `GET /v1/factories/{id}`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn factory(&self, id: &str) -> Result<Factory> {
        self.api()?.get(&format!("/v1/factories/{id}"))
    }

    /// `GET /v1/payments`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn payments(&self) -> Result<Vec<Payment>> {
        self.api()?.get("/v1/payments")
    }

    /// The events of one kind, oldest first; all pages of `GET /v1/events`.
    ///
    /// # Errors
    /// If a call fails.
    pub fn events(&self, kind: &str) -> Result<Vec<Event>> {
        #[derive(Deserialize)]
        struct Page {
            events: Vec<Event>,
            next: u64,
        }
        let (mut after, mut found) = (0, Vec::new());
        loop {
            let page: Page = self.api()?.get(&format!("/v1/events?after={after}"))?;
            if page.events.is_empty() {
                return Ok(found);
            }
            found.extend(page.events.into_iter().filter(|event| event.kind == kind));
            after = page.next;
        }
    }

    /// A new on-chain address.
    ///
    /// # Errors
    /// If the call fails.
    pub fn address(&self) -> Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            address: String,
        }
        Ok(self.api()?.post::<Answer>("/v1/address", &json!({}))?.address)
    }

    /// A BOLT 11 invoice, its own: not one of its LSP's.
    ///
    /// # Errors
    /// If the call fails.
    pub fn invoice(&self, amount_msat: u64, description: &str) -> Result<Invoice> {
        let relay = (self.name != "lsp-server").then_some("never");
        let body = json!({ "amount_msat": amount_msat, "description": description, "relay": relay });
        self.api()?.post("/v1/invoice", &body)
    }

    /// An offer; without an amount the payer chooses.
    ///
    /// # Errors
    /// If the call fails.
    pub fn offer(&self, amount_msat: Option<u64>) -> Result<Offer> {
        self.api()?.post("/v1/offer", &json!({ "amount_msat": amount_msat, "description": "two oxen" }))
    }

    /// Pays an invoice, or to an offer over an amount, and waits for the outcome, which may be a failure.
    ///
    /// # Errors
    /// If the call fails.
    pub fn pay(&self, invoice: &str) -> Result<Payment> {
        self.api()?.post("/v1/pay", &json!({ "invoice": invoice, "wait_secs": 90 }))
    }

    /// Begins to pay an invoice and does not wait for the outcome.
    ///
    /// # Errors
    /// If the call fails.
    pub fn send(&self, invoice: &str) -> Result<Payment> {
        self.api()?.post("/v1/pay", &json!({ "invoice": invoice, "wait_secs": 0 }))
    }

    /// A BOLT 11 invoice over a hash; what is paid on it is held.
    ///
    /// # Errors
    /// If the call fails.
    pub fn hold_invoice(&self, amount_msat: u64, payment_hash: &str) -> Result<Invoice> {
        let body = json!({ "amount_msat": amount_msat, "payment_hash": payment_hash });
        self.api()?.post("/v1/invoice", &body)
    }

    /// Claims a held payment.
    ///
    /// # Errors
    /// If the call fails.
    pub fn claim(&self, preimage: &str) -> Result<Payment> {
        self.api()?.post("/v1/payments/claim", &json!({ "preimage": preimage }))
    }

    /// Gives a held payment back.
    ///
    /// # Errors
    /// If the call fails.
    pub fn fail(&self, payment_hash: &str) -> Result<Payment> {
        self.api()?.post("/v1/payments/fail", &json!({ "payment_hash": payment_hash }))
    }

    /// Asks for the cooperative close of a factory.
    ///
    /// # Errors
    /// If the call fails.
    pub fn close_factory(&self, id: &str) -> Result<()> {
        self.api()?.post::<Value>(&format!("/v1/factories/{id}/close"), &json!({}))?;
        Ok(())
    }

    /// Waits until the node has seen bitcoind's best block.
    ///
    /// # Errors
    /// If it has not within a minute.
    pub fn wait_synced(&self, bitcoind: &Bitcoind) -> Result<()> {
        let best = bitcoind.best_block()?;
        wait::until_value(
            &format!("{} at block {best}", self.name),
            PATIENCE,
            || self.info(),
            |info| info.block_hash == best && info.synced,
        )?;
        Ok(())
    }
}
