//! Resource quantities as whole numbers. Quantities were validated by the API server; what does not parse counts as absent.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Value in billionths, so that `1n` is exact.
fn nanos(text: &str) -> Option<i128> {
    let text = text.trim();
    let split = text
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || *c == '.' || (*i == 0 && (*c == '-' || *c == '+'))))
        .map_or(text.len(), |(i, _)| i);
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = whole.trim_start_matches(['-', '+']);
    if digits.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let mut value = whole.checked_mul(1_000_000_000)?;
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    value = value.checked_add(fraction.parse().ok()?)?;
    let scaled = match suffix {
        "n" => value / 1_000_000_000,
        "u" => value / 1_000_000,
        "m" => value / 1_000,
        "" => value,
        "k" => value.checked_mul(1_000)?,
        "M" => value.checked_mul(1_000_000)?,
        "G" => value.checked_mul(1_000_000_000)?,
        "T" => value.checked_mul(1_000_000_000_000)?,
        "P" => value.checked_mul(1_000_000_000_000_000)?,
        "E" => value.checked_mul(1_000_000_000_000_000_000)?,
        "Ki" => value.checked_mul(1 << 10)?,
        "Mi" => value.checked_mul(1 << 20)?,
        "Gi" => value.checked_mul(1 << 30)?,
        "Ti" => value.checked_mul(1 << 40)?,
        "Pi" => value.checked_mul(1 << 50)?,
        "Ei" => value.checked_mul(1 << 60)?,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { value / factor } else { value.checked_mul(factor)? }
        }
    };
    Some(if negative { -scaled } else { scaled })
}

fn rounded_up(quantity: &Quantity, unit: i128) -> Option<i64> {
    let nanos = nanos(&quantity.0)?;
    i64::try_from(nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0)).ok()
}

/// Whole units, rounded up: bytes of memory.
pub fn value(quantity: &Quantity) -> Option<i64> {
    rounded_up(quantity, 1_000_000_000)
}

/// Thousandths, rounded up: millicores.
pub fn millis(quantity: &Quantity) -> Option<i64> {
    rounded_up(quantity, 1_000_000)
}

/// How many times `divisor` goes into the quantity, rounded up, as the downward API wants it.
pub fn divided(quantity: &Quantity, divisor: &Quantity) -> Option<i64> {
    let by = nanos(&divisor.0).filter(|by| *by > 0).unwrap_or(1_000_000_000);
    let nanos = nanos(&quantity.0)?;
    i64::try_from(nanos.div_euclid(by) + i128::from(nanos.rem_euclid(by) != 0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_every_notation() {
        let table = [
            ("100m", Some(100), Some(1)),
            ("0.5", Some(500), Some(1)),
            ("2", Some(2000), Some(2)),
            ("64Mi", Some(64 * 1024 * 1024 * 1000), Some(64 * 1024 * 1024)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("1n", Some(1), Some(1)),
            ("-1", Some(-1000), Some(-1)),
            ("", None, None),
            ("1x", None, None),
        ];
        for (text, millicores, units) in table {
            let quantity = Quantity(text.to_owned());
            assert_eq!((millis(&quantity), value(&quantity)), (millicores, units), "{text}");
        }
        assert_eq!(divided(&Quantity("1500m".into()), &Quantity("1".into())), Some(2));
        assert_eq!(divided(&Quantity("64Mi".into()), &Quantity("1Mi".into())), Some(64));
    }
}
