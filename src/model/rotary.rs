//! Rotary positions: what a configuration says of them, and the angles. Knows no family.

use super::Positions;
use super::encoder::Settings;
use super::json::Object;
use crate::error::Result;

/// What a base must be.
const BASE: &str = "a number from 1 to 1e12";

/// Keys that are read in `rope_parameters` and `rope_scaling`.
const KEYS: [&str; 4] = ["rope_type", "type", "rope_theta", "factor"];

/// The angle by which components `i` and `i + head_dim / 2` are rotated at a position: position ·
/// base^(−2i / head_dim) / divisor, rounded to f32 at each step as transformers does it.
pub fn rotary_angle(position: u32, i: usize, head_dim: usize, base: f32, divisor: f32) -> f32 {
    let exponent = (2 * i) as f32 / head_dim as f32;
    let power = f64::from(base).powf(f64::from(exponent)) as f32;
    position as f32 * (1.0 / power / divisor)
}

/// The positions of a family whose layers all rotate alike: base and scaling from `rope_parameters` or, before it,
/// `rope_scaling`; the base else from `rope_theta`.
///
/// "linear" divides the angles by a factor. "ntk" is of gte's own code: the base times the factor, and the angles
/// divided by factor^(2 / head size).
pub(super) fn positions(
    settings: &mut Settings<'_>,
    default_base: f32,
    head_dim: usize,
) -> Result<Positions> {
    let config = settings.config;
    let scaling = config.object("rope_scaling")?.filter(|s| s.iter().next().is_some());
    let parameters = match scaling {
        Some(scaling) => scaling,
        None => config.object("rope_parameters")?.unwrap_or_else(|| Object::empty(config.path())),
    };
    if let Some((name, _)) = parameters.iter().find(|(name, _)| !KEYS.contains(name)) {
        return Err(parameters.unsupported(name, "only rope_type, rope_theta and factor"));
    }
    let base = match (base(&parameters, "rope_theta")?, base(config, "rope_theta")?) {
        (Some(base), _) | (None, Some(base)) => base,
        (None, None) => settings.assumed("rope_theta", default_base),
    };
    let key = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = parameters.string(key)?.unwrap_or("default");
    if kind == "default" {
        if parameters.get("factor").is_some() {
            return Err(parameters.unsupported("factor", "no factor where rope_type is default"));
        }
        return Ok(Positions::Rotary { global_base: base, local_base: base, divisor: 1.0 });
    }
    let factor = match parameters.number("factor")? {
        Some(factor) if (1.0..=MOST_FACTOR).contains(&factor) => factor,
        _ => return Err(parameters.wrong("factor", "a number from 1 to 1000000")),
    };
    let (base, divisor) = match kind {
        "linear" => (base, factor),
        "ntk" => ((f64::from(base) * factor) as f32, factor.powf(2.0 / head_dim as f64)),
        _ => return Err(parameters.unsupported(key, "one of default, linear, ntk")),
    };
    Ok(Positions::Rotary { global_base: base, local_base: base, divisor: divisor as f32 })
}

/// Far above any model's.
const MOST_FACTOR: f64 = 1e6;

/// A base, if there is one.
pub(super) fn base(object: &Object, key: &str) -> Result<Option<f32>> {
    object.not_null(key, BASE)?;
    match object.number(key)? {
        Some(base) if !(1.0..=1e12).contains(&base) => Err(object.wrong(key, BASE)),
        base => Ok(base.map(|base| base as f32)),
    }
}
