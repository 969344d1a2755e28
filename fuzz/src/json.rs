//! Changes to JSON that stays JSON: a number, a digit of a hex string, an item of a list at a time.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{json, Value};

/// A custom mutator for inputs of `prefix` bytes and JSON. What is none is left to libFuzzer, as is a part of the rest.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32, prefix: usize) -> usize {
    let mut rng = StdRng::seed_from_u64(seed.into());
    let parsed = data.get(prefix..size).and_then(|text| serde_json::from_slice::<Value>(text).ok());
    let Some(mut value) = parsed.filter(|_| !rng.random_ratio(1, 8)) else {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..rng.random_range(1..=3) {
        let nodes = count(&value);
        let mut nth = rng.random_range(0..nodes);
        if let Some(node) = find(&mut value, &mut nth) {
            change(node, &mut rng);
        }
    }
    let text = value.to_string();
    let end = prefix + text.len();
    if end > max_size {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    data[prefix..end].copy_from_slice(text.as_bytes());
    end
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The `nth` value, the outer ones first.
fn find<'a>(value: &'a mut Value, nth: &mut usize) -> Option<&'a mut Value> {
    if *nth == 0 {
        return Some(value);
    }
    *nth -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| find(item, nth)),
        Value::Object(fields) => fields.values_mut().find_map(|item| find(item, nth)),
        _ => None,
    }
}

fn change(value: &mut Value, rng: &mut StdRng) {
    if rng.random_ratio(1, 10) {
        *value = match rng.random_range(0..5) {
            0 => Value::Null,
            1 => json!(0),
            2 => json!(""),
            3 => json!([]),
            _ => json!({}),
        };
        return;
    }
    match value {
        Value::Null => *value = json!(rng.random_range(0..1000)),
        Value::Bool(b) => *b = !*b,
        Value::Number(n) => {
            let was = n.as_u64().unwrap_or(0);
            *value = match rng.random_range(0..8) {
                0 => json!(0),
                1 => json!(was.wrapping_add(1)),
                2 => json!(was.wrapping_sub(1)),
                3 => json!(u64::MAX),
                4 => json!(u32::MAX),
                5 => json!(u16::MAX),
                6 => json!(-1),
                _ => json!(rng.random_range(0..2000)),
            };
        }
        Value::String(text) => {
            let mut chars: Vec<char> = text.chars().collect();
            let at = rng.random_range(0..=chars.len());
            match rng.random_range(0..5) {
                0 if at < chars.len() => drop(chars.remove(at)),
                1 => chars.insert(at, '0'),
                2 => chars.truncate(at),
                _ if at < chars.len() => {
                    chars[at] = char::from_digit(rng.random_range(0..16), 16).unwrap_or('0')
                }
                _ => chars.clear(),
            }
            *text = chars.into_iter().collect();
        }
        Value::Array(items) => {
            let len = items.len();
            if len == 0 {
                return items.push(json!(0));
            }
            let (at, other) = (rng.random_range(0..len), rng.random_range(0..len));
            match rng.random_range(0..4) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[other].clone()),
                2 => items.swap(at, other),
                _ => items.truncate(at),
            }
        }
        Value::Object(fields) => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            if keys.is_empty() {
                return drop(fields.insert("x".into(), json!(0)));
            }
            let (at, other) = (rng.random_range(0..keys.len()), rng.random_range(0..keys.len()));
            match rng.random_range(0..3) {
                0 => drop(fields.remove(&keys[at])),
                1 => drop(fields.insert(keys[at].clone(), fields[&keys[other]].clone())),
                _ => drop(fields.insert(format!("{}x", keys[at]), json!(0))),
            }
        }
    }
}
