//! Settings in layers: flag over environment over config file over default.
//!
//! Every setting has one name: `poll_ms` in the file, `--poll-ms` as a flag and
//! `<PREFIX>_POLL_MS` in the environment. The macro [`settings!`](crate::settings) makes a struct of
//! them with all three ways in, so that no layer can forget one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::Table;

use super::super::HttpError;

/// Names that belong to the command line itself and are no settings of the node.
const OWN_KEYS: [&str; 2] = ["data_dir", "config"];

/// A struct of settings made by [`settings!`](crate::settings).
pub trait Settings: Sized + serde::de::DeserializeOwned + serde::Serialize {
    /// Their names.
    const KEYS: &'static [&'static str];

    /// Parses texts, as the environment gives them. An error is the key, its text and the reason.
    ///
    /// # Errors
    /// The first value that does not parse.
    fn from_texts(texts: &BTreeMap<String, String>) -> Result<Self, (&'static str, String, String)>;

    /// Takes from `lower` what is not set here.
    fn over(self, lower: Self) -> Self;
}

/// Makes a struct of optional settings: clap flags, TOML keys and environment variables.
#[macro_export]
macro_rules! settings {
    ($(#[$outer:meta])* pub struct $name:ident { $($(#[$inner:meta])* pub $key:ident: $type:ty,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Default, clap::Args)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$inner])* #[arg(long)] #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$type>,)*
        }

        impl $crate::http::cli::Settings for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn from_texts(
                texts: &std::collections::BTreeMap<String, String>,
            ) -> Result<Self, (&'static str, String, String)> {
                Ok(Self { $($key: match texts.get(stringify!($key)) {
                    Some(text) => Some(text.parse::<$type>().map_err(|e| {
                        (stringify!($key), text.clone(), e.to_string())
                    })?),
                    None => None,
                },)* })
            }

            fn over(self, lower: Self) -> Self {
                Self { $($key: self.$key.or(lower.$key),)* }
            }
        }
    };
}

/// The two lower layers, read and checked for names that do not exist.
#[derive(Debug)]
pub struct Layers {
    prefix: String,
    environment: BTreeMap<String, String>,
    file_name: String,
    file: Table,
}

impl Layers {
    /// Reads the config file and takes what begins with `prefix` and `_` from the environment.
    ///
    /// `config` is the file named by a flag; without it `<PREFIX>_CONFIG`, and without that
    /// `config.toml` in the data directory, which need not exist. `known` are the keys of all
    /// [`Settings`] that will be taken out.
    ///
    /// # Errors
    /// [`HttpError::File`], [`HttpError::ConfigFile`], [`HttpError::UnknownSetting`].
    pub fn load(
        prefix: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        config: Option<&Path>,
        data_dir: &Path,
        known: &[&[&'static str]],
    ) -> Result<Self, HttpError> {
        let all = flat(known);
        let environment = environment_layer(prefix, variables, &all)?;
        let named = config.map(Path::to_owned).or(environment.get("config").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| data_dir.join("config.toml"));
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => String::new(),
            other => other.map_err(HttpError::file("read", &path))?,
        };
        Self::new(prefix, environment, &path, &text, &all)
    }

    /// As [`Layers::load`], with the text of the file given.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn parse(
        prefix: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        path: PathBuf,
        text: &str,
        known: &[&[&'static str]],
    ) -> Result<Self, HttpError> {
        let all = flat(known);
        Self::new(prefix, environment_layer(prefix, variables, &all)?, &path, text, &all)
    }

    fn new(
        prefix: &str,
        environment: BTreeMap<String, String>,
        path: &Path,
        text: &str,
        known: &[&str],
    ) -> Result<Self, HttpError> {
        let file = toml::from_str::<Table>(text)
            .map_err(|e| HttpError::ConfigFile { path: path.to_owned(), reason: syntax_error(text, &e) })?;
        let file_name = path.display().to_string();
        if let Some(key) = file.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unknown(&file_name, key, known));
        }
        Ok(Self { prefix: prefix.to_owned(), environment, file_name, file })
    }

    /// One struct of settings, with the flags on top.
    ///
    /// # Errors
    /// [`HttpError::BadSetting`] naming layer, key, value and reason.
    pub fn resolve<S: Settings>(&self, flags: S) -> Result<S, HttpError> {
        Ok(flags.over(self.environment()?).over(self.file()?))
    }

    /// The environment's layer alone.
    ///
    /// # Errors
    /// As [`Layers::resolve`].
    pub fn environment<S: Settings>(&self) -> Result<S, HttpError> {
        S::from_texts(&self.environment).map_err(|(key, value, reason)| {
            let value = shown(key, value);
            let key = variable(&self.prefix, key);
            HttpError::BadSetting { place: "environment".into(), key, value, reason }
        })
    }

    /// The config file's layer alone.
    ///
    /// # Errors
    /// As [`Layers::resolve`].
    pub fn file<S: Settings>(&self) -> Result<S, HttpError> {
        let own: Table = self
            .file
            .iter()
            .filter(|(key, _)| S::KEYS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        serde_path_to_error::deserialize(own).map_err(|e| {
            let key = e.path().to_string();
            let value = shown(&key, self.file.get(&key).map(ToString::to_string).unwrap_or_default());
            // Serde's text repeats the value.
            let reason = match value == HIDDEN {
                true => "has the wrong type".to_owned(),
                false => e.into_inner().message().to_owned(),
            };
            HttpError::BadSetting { place: self.file_name.clone(), key, value, reason }
        })
    }
}

fn flat(known: &[&[&'static str]]) -> Vec<&'static str> {
    known.iter().flat_map(|keys| keys.iter().copied()).collect()
}

/// The environment of this process; variables that are not UTF-8 are nobody's settings.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

const HIDDEN: &str = "(hidden)";

/// A value as an error may show it: passwords stay out of terminals and journals.
fn shown(key: &str, value: String) -> String {
    match key.ends_with("_pass") {
        true => HIDDEN.to_owned(),
        false => value,
    }
}

/// Line and reason, without the line itself: it may hold a password.
fn syntax_error(text: &str, e: &toml::de::Error) -> String {
    let before = e.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, e.message()),
        None => e.message().to_owned(),
    }
}

fn variable(prefix: &str, key: &str) -> String {
    format!("{prefix}_{}", key.to_uppercase())
}

fn unknown(place: &str, key: &str, known: &[&str]) -> HttpError {
    HttpError::UnknownSetting { place: place.to_owned(), key: key.to_owned(), known: known.join(", ") }
}

/// Variables with the prefix, by key. Those that container platforms make up for a service of that
/// name (`..._SERVICE_HOST`, `..._PORT_9735_TCP`) are left alone.
fn environment_layer(
    prefix: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    known: &[&str],
) -> Result<BTreeMap<String, String>, HttpError> {
    let mut layer = BTreeMap::new();
    for (name, value) in variables {
        let Some(key) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) else { continue };
        if key == "PORT" || key.starts_with("PORT_") || key.starts_with("SERVICE_") {
            continue;
        }
        let key = key.to_lowercase();
        if !known.contains(&key.as_str()) && !OWN_KEYS.contains(&key.as_str()) {
            return Err(unknown("environment", &name, known));
        }
        layer.insert(key, value);
    }
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::settings! {
        /// For the tests.
        #[derive(Debug, PartialEq)]
        pub struct Sample {
            /// A number
            pub poll_ms: u64,
            /// A text
            pub alias: String,
            /// A switch
            pub join: bool,
        }
    }

    fn load(file: &str, environment: &[(&str, &str)]) -> Result<Layers, HttpError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), file).unwrap();
        let variables = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Layers::load("APP", variables, None, dir.path(), &[Sample::KEYS])
    }

    #[test]
    fn flag_over_environment_over_file() {
        let layers =
            load("poll_ms = 1\nalias = \"file\"\njoin = true", &[("APP_POLL_MS", "2"), ("APP_ALIAS", "env")])
                .unwrap();
        let got = layers.resolve(Sample { poll_ms: Some(3), ..Default::default() }).unwrap();
        assert_eq!(got, Sample { poll_ms: Some(3), alias: Some("env".into()), join: Some(true) });
        let none = load("", &[]).unwrap().resolve(Sample::default()).unwrap();
        assert_eq!(none, Sample::default());
    }

    #[test]
    fn unknown_names_are_errors_that_name_them() {
        let e = load("pol_ms = 1", &[]).unwrap_err().to_string();
        assert!(e.contains("config.toml") && e.contains("pol_ms") && e.contains("poll_ms, alias"), "{e}");
        let e = load("", &[("APP_POL_MS", "1")]).unwrap_err().to_string();
        assert!(e.contains("APP_POL_MS"), "{e}");
        assert!(
            load("", &[("APP_PORT", "tcp://10.0.0.1"), ("APP_SERVICE_HOST", "x"), ("OTHER", "1")]).is_ok()
        );
    }

    #[test]
    fn bad_values_are_errors_that_name_place_key_and_value() {
        let e = load("poll_ms = \"often\"", &[]).unwrap().resolve(Sample::default());
        let Err(HttpError::BadSetting { place, key, value, .. }) = e else { panic!("accepted") };
        assert!(place.ends_with("config.toml"));
        assert_eq!((key.as_str(), value.as_str()), ("poll_ms", "\"often\""));
        let e = load("", &[("APP_POLL_MS", "-1")]).unwrap().resolve(Sample::default());
        let Err(HttpError::BadSetting { place, key, value, .. }) = e else { panic!("accepted") };
        assert_eq!((place.as_str(), key.as_str(), value.as_str()), ("environment", "APP_POLL_MS", "-1"));
    }

    #[test]
    fn passwords_stay_out_of_errors() {
        crate::settings! {
            /// With a secret.
            pub struct Secret {
                /// Secret
                pub bitcoind_pass: String,
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let load = |file: &str| {
            fs::write(dir.path().join("config.toml"), file).unwrap();
            Layers::load("APP", [], None, dir.path(), &[Secret::KEYS])
        };
        let e = load("bitcoind_pass = 4711").unwrap().resolve(Secret::default()).err().unwrap().to_string();
        assert!(e.contains("bitcoind_pass = (hidden)") && !e.contains("4711"), "{e}");
        let e = load("\nbitcoind_pass = hunter2").unwrap_err().to_string();
        assert!(e.contains("line 2") && !e.contains("hunter2"), "{e}");
    }

    #[test]
    fn a_named_config_file_must_exist_and_be_toml() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.toml");
        let load = || Layers::load("APP", [], Some(&path), dir.path(), &[Sample::KEYS]);
        assert!(matches!(load(), Err(HttpError::File { .. })));
        fs::write(&path, "poll_ms =").unwrap();
        assert!(matches!(load(), Err(HttpError::ConfigFile { .. })));
    }
}
