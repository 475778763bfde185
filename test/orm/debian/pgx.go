// test/orm/debian/pgx.go: pgx. bridge.py asks.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgtype"
	"github.com/jackc/pgx/v4"
)

// doc: pgx
// Create makes a key for each object; the objects have the same columns. Each column is told by its type.
func create(ctx context.Context, db *pgx.Conn, objects []map[string]interface{}) ([]map[string]interface{}, error) {
	var names, rows []string
	var values []interface{}
	for name := range objects[0] {
		names = append(names, name)
	}
	for _, object := range objects {
		var places []string
		for _, name := range names {
			values = append(values, object[name])
			places = append(places, fmt.Sprintf("$%d%s", len(values), cast[name]))
		}
		rows = append(rows, "("+strings.Join(places, ", ")+")")
	}
	return all(ctx, db, "INSERT INTO rk_apikeys.orm_keys ("+strings.Join(names, ", ")+") VALUES "+strings.Join(rows, ", ")+
		" RETURNING *", values...)
}

func update(ctx context.Context, db *pgx.Conn, id string, changes map[string]interface{}) error {
	var sets []string
	values := []interface{}{id}
	for name, value := range changes {
		values = append(values, value)
		sets = append(sets, fmt.Sprintf("%s = $%d%s", name, len(values), cast[name]))
	}
	_, err := db.Exec(ctx, "UPDATE rk_apikeys.orm_keys SET "+strings.Join(sets, ", ")+" WHERE key_id = $1", values...)
	return err
}

// What the program has as text or list of texts, and PostgreSQL as another type.
var cast = map[string]string{"allowed_cidrs": "::text[]::cidr[]", "rate_window": "::text::interval", "expires_in": "::text::interval",
	"expires_at": "::text::timestamptz", "grace_until": "::text::timestamptz", "revoked_at": "::text::timestamptz",
	"created_at": "::text::timestamptz", "updated_at": "::text::timestamptz", "last_used_at": "::text::timestamptz"}

// All returns the rows of a statement, each by the names of its columns.
func all(ctx context.Context, db interface {
	Query(context.Context, string, ...interface{}) (pgx.Rows, error)
}, sql string, values ...interface{}) ([]map[string]interface{}, error) {
	list := []map[string]interface{}{}
	rows, err := db.Query(ctx, sql, values...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		columns, err := rows.Values()
		if err != nil {
			return nil, err
		}
		row := map[string]interface{}{}
		for i, field := range rows.FieldDescriptions() {
			row[string(field.Name)] = columns[i]
		}
		list = append(list, row)
	}
	return list, rows.Err()
}

// doc: end

// doc: pgx_request
func enter(ctx context.Context, db *pgx.Conn, token string) (verdict map[string]interface{}, bodies []interface{}, err error) {
	bodies = []interface{}{}
	err = db.BeginFunc(ctx, func(tx pgx.Tx) error {
		rows, err := all(ctx, tx, "SELECT * FROM rk_apikeys.authenticate($1, raise => false)", token)
		if err != nil {
			return err
		}
		verdict = rows[0]
		if verdict["valid"] != true {
			return nil
		}
		records, err := all(ctx, tx, "SELECT body FROM records ORDER BY id")
		for _, record := range records {
			bodies = append(bodies, record["body"])
		}
		return err
	})
	return
}

// doc: end

// A value as bridge.py reads it.
func told(value interface{}) interface{} {
	switch v := value.(type) {
	case time.Time:
		return map[string]string{"$time": v.UTC().Format("2006-01-02T15:04:05.000000+00:00")}
	case pgtype.Interval:
		return map[string]float64{"$interval": float64(v.Days)*86400 + float64(v.Microseconds)/1e6}
	case pgtype.TextArray:
		list := []string{}
		v.AssignTo(&list)
		return list
	case pgtype.CIDRArray:
		nets, list := []*net.IPNet{}, []string{}
		v.AssignTo(&nets)
		for _, one := range nets {
			list = append(list, one.String())
		}
		return list
	case []map[string]interface{}:
		list := []interface{}{}
		for _, row := range v {
			list = append(list, told(row))
		}
		return list
	case []interface{}:
		for i := range v {
			v[i] = told(v[i])
		}
	case map[string]interface{}:
		for name := range v {
			v[name] = told(v[name])
		}
	}
	return value
}

// A value of JSON as pgx sends it: a list of texts is an array, an object is JSON.
func sent(value interface{}) interface{} {
	switch v := value.(type) {
	case []interface{}:
		list := []string{}
		for _, one := range v {
			list = append(list, one.(string))
		}
		return list
	case float64:
		return int64(v)
	}
	return value
}

func object(value interface{}) map[string]interface{} {
	result := value.(map[string]interface{})
	for name := range result {
		result[name] = sent(result[name])
	}
	return result
}

type logger struct{ text *strings.Builder }

func (l logger) Log(ctx context.Context, level pgx.LogLevel, message string, data map[string]interface{}) {
	fmt.Fprintln(l.text, level, message, data)
}

var db *pgx.Conn
var log strings.Builder

func answer(ctx context.Context, v []interface{}) (interface{}, error) {
	first := func(rows []map[string]interface{}, err error) (interface{}, error) {
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		return rows[0], nil
	}
	switch v[0] {
	case "open":
		where := v[1].(map[string]interface{})
		config, err := pgx.ParseConfig(fmt.Sprintf("host=%v port=%v dbname=%v user=%v", where["host"], where["port"], where["dbname"], where["user"]))
		if err != nil {
			return nil, err
		}
		// PgBouncer: no prepared statements on the server
		config.PreferSimpleProtocol = fmt.Sprint(where["port"]) == os.Getenv("RK_BOUNCER")
		if where["log"] != nil {
			config.Logger = logger{&log}
			config.LogLevel = pgx.LogLevelTrace
		}
		db, err = pgx.ConnectConfig(ctx, config)
		return nil, err
	case "create":
		return first(create(ctx, db, []map[string]interface{}{object(v[1])}))
	case "create_many":
		list := []map[string]interface{}{}
		for _, one := range v[1].([]interface{}) {
			list = append(list, object(one))
		}
		return create(ctx, db, list)
	case "find":
		return all(ctx, db, "SELECT * FROM rk_apikeys.orm_keys WHERE name ILIKE $1 ORDER BY "+v[2].(string)+" LIMIT $2 OFFSET $3",
			"%"+v[1].(string)+"%", sent(v[3]), sent(v[4]))
	case "read":
		return first(all(ctx, db, "SELECT * FROM rk_apikeys.orm_keys WHERE key_id = $1", v[1]))
	case "save", "write":
		return nil, update(ctx, db, v[1].(string), object(v[2]))
	case "remove":
		_, err := db.Exec(ctx, "DELETE FROM rk_apikeys.orm_keys WHERE key_id = $1", v[1])
		return nil, err
	case "rows":
		sql, values := v[1].(string), v[2].([]interface{})
		for i := range values {
			sql = strings.Replace(sql, "%s", fmt.Sprintf("$%d", i+1), 1)
			values[i] = sent(values[i])
		}
		return all(ctx, db, sql, values...)
	case "verify":
		return first(all(ctx, db, "SELECT * FROM rk_apikeys.verify_key($1, $2, cost => $3)", v[1], v[2], sent(v[3])))
	case "enter":
		verdict, bodies, err := enter(ctx, db, v[1].(string))
		return []interface{}{verdict, bodies}, err
	default:
		return nil, db.BeginFunc(ctx, func(tx pgx.Tx) error {
			_, err := all(ctx, tx, "SELECT * FROM rk_apikeys.authenticate($1)", v[1])
			return err
		})
	}
}

func main() {
	ctx := context.Background()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var values []interface{}
		json.Unmarshal(lines.Bytes(), &values)
		value, err := answer(ctx, values)
		result := map[string]interface{}{"value": told(value), "log": log.String()}
		log.Reset()
		if err != nil {
			result["error"] = err.Error()
			result["object"] = fmt.Sprintf("%#v", err)
			var own *pgconn.PgError
			if errors.As(err, &own) {
				result["state"] = own.Code
				result["object"] = fmt.Sprintf("%#v %#v", err, *own)
			}
		}
		line, _ := json.Marshal(result)
		fmt.Println(string(line))
	}
}
