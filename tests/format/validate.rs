//! JSON Schema, draft 2020-12, as far as the schema of the manifest goes: a keyword that is not known here is an error,
//! not ignored.

use fancy_regex::Regex;
use serde_json::{Map, Value};

/// Keywords that only describe.
const NOTES: [&str; 5] = ["$schema", "$id", "$defs", "title", "description"];

/// A schema whose references lead to its own `$defs`.
pub(super) struct Validator {
    schema: Value,
}

impl Validator {
    pub(super) fn new(schema: Value) -> Self {
        Self { schema }
    }

    pub(super) fn is_valid(&self, value: &Value) -> bool {
        self.validate(value).is_ok()
    }

    /// The keyword and the place of the first thing that is wrong.
    pub(super) fn validate(&self, value: &Value) -> Result<(), String> {
        self.check(&self.schema, value, "")
    }

    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => return Err(format!("nothing may be at {at}")),
            Value::Object(schema) => schema,
            other => panic!("{other} is no schema"),
        };
        for (keyword, rule) in schema {
            let holds = match (keyword.as_str(), value) {
                ("type", _) => is_type(rule.as_str().unwrap(), value),
                ("const", _) => value == rule,
                ("enum", _) => rule.as_array().unwrap().contains(value),
                ("$ref", _) => {
                    self.check(self.definition(rule), value, at)?;
                    true
                }
                ("if" | "then" | "else", _) => self.conditional(keyword, schema, value, at)?,
                ("allOf" | "oneOf" | "not", _) => self.combined(keyword, rule, value, at),
                (_, Value::Object(map)) if OF_OBJECTS.contains(&keyword.as_str()) => {
                    self.object(keyword, schema, map, at)?
                }
                (_, Value::Array(items)) if OF_ARRAYS.contains(&keyword.as_str()) => {
                    self.array(keyword, rule, items, at)?
                }
                ("minimum", Value::Number(n)) => n.as_f64() >= rule.as_f64(),
                ("maximum", Value::Number(n)) => n.as_f64() <= rule.as_f64(),
                ("maxLength", Value::String(s)) => s.chars().count() <= size(rule),
                ("minLength", Value::String(s)) => s.chars().count() >= size(rule),
                ("pattern", Value::String(s)) => {
                    let pattern = Regex::new(rule.as_str().unwrap()).unwrap();
                    pattern.is_match(s).unwrap()
                }
                (known, _) => {
                    let of_others = [
                        &OF_OBJECTS[..],
                        &OF_ARRAYS,
                        &["minimum", "maximum", "minLength", "maxLength", "pattern"],
                        &NOTES,
                    ];
                    let known = of_others.concat().contains(&known);
                    assert!(known, "`{keyword}` of the schema is not known here");
                    true
                }
            };
            if !holds {
                return Err(format!(
                    "`{keyword}` of the schema does not hold at {at}: {value}"
                ));
            }
        }
        Ok(())
    }

    fn definition(&self, reference: &Value) -> &Value {
        let path = reference.as_str().unwrap().strip_prefix('#').unwrap();
        self.schema.pointer(path).expect("a definition")
    }

    fn conditional(
        &self,
        keyword: &str,
        schema: &Map<String, Value>,
        value: &Value,
        at: &str,
    ) -> Result<bool, String> {
        if keyword == "if" {
            return Ok(true);
        }
        let condition = self.check(&schema["if"], value, at).is_ok();
        if condition == (keyword == "then") {
            self.check(&schema[keyword], value, at)?;
        }
        Ok(true)
    }

    fn combined(&self, keyword: &str, rule: &Value, value: &Value, at: &str) -> bool {
        let holds = |schema: &Value| self.check(schema, value, at).is_ok();
        match keyword {
            "not" => !holds(rule),
            "allOf" => rule.as_array().unwrap().iter().all(holds),
            _ => rule.as_array().unwrap().iter().filter(|s| holds(s)).count() == 1,
        }
    }

    fn object(
        &self,
        keyword: &str,
        schema: &Map<String, Value>,
        map: &Map<String, Value>,
        at: &str,
    ) -> Result<bool, String> {
        let rule = &schema[keyword];
        let named = |key: &str| {
            schema
                .get("properties")
                .is_some_and(|p| p.get(key).is_some())
        };
        match keyword {
            "minProperties" => return Ok(map.len() >= size(rule)),
            "maxProperties" => return Ok(map.len() <= size(rule)),
            "required" => {
                let names = rule.as_array().unwrap();
                return Ok(names.iter().all(|n| map.contains_key(n.as_str().unwrap())));
            }
            _ => {}
        }
        for (key, value) in map {
            let at = format!("{at}/{key}");
            match keyword {
                "properties" if named(key) => self.check(&rule[key], value, &at)?,
                "propertyNames" => self.check(rule, &Value::from(key.as_str()), &at)?,
                "additionalProperties" if !named(key) => self.check(rule, value, &at)?,
                _ => {}
            }
        }
        Ok(true)
    }

    fn array(
        &self,
        keyword: &str,
        rule: &Value,
        items: &[Value],
        at: &str,
    ) -> Result<bool, String> {
        let each = |(i, item): (usize, &Value)| self.check(rule, item, &format!("{at}/{i}"));
        Ok(match keyword {
            "minItems" => items.len() >= size(rule),
            "maxItems" => items.len() <= size(rule),
            "uniqueItems" => {
                let repeated = |(i, item): (usize, &Value)| items[..i].contains(item);
                rule != &Value::Bool(true) || !items.iter().enumerate().any(repeated)
            }
            "contains" => items.iter().enumerate().any(|item| each(item).is_ok()),
            _ => {
                items.iter().enumerate().try_for_each(each)?;
                true
            }
        })
    }
}

const OF_OBJECTS: [&str; 6] = [
    "properties",
    "required",
    "additionalProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
];
const OF_ARRAYS: [&str; 5] = ["items", "minItems", "maxItems", "uniqueItems", "contains"];

fn size(rule: &Value) -> usize {
    rule.as_u64().unwrap() as usize
}

/// Whether a value has a type. A number without a fraction is an integer, however it is written.
fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        other => panic!("the type `{other}` is not known here"),
    }
}
