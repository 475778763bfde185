// examples/go/server.go: GET and POST /records over HTTP for whoever has an API key, with net/http and pgx; see ../records.sql.
// GET /auth?scope=... is for a gateway such as ../nginx/server.conf: it answers whether a key is valid.
//
//	go build server.go
//	PGUSER=records_api PGDATABASE=... PORT=8080 ./server
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

const bodyMax = 65536

const authenticate = `
	SELECT v.valid, r.status, r.headers, r.body
	FROM rk_apikeys.authenticate($1, $2, rk_apikeys.client_addr($3), raise => false) v,
		rk_apikeys.http_response(CASE WHEN $1 IS NOT NULL THEN v END, $2) r`

var (
	pool   *pgxpool.Pool
	bearer = regexp.MustCompile(`(?i)^bearer +([ -~]+)$`)
	down   = regexp.MustCompile(`^(08|57P|53300)`) // SQLSTATEs of a database that takes no requests now
)

// What a request with a valid key does in its transaction; returns the status and what to send as JSON.
type action func(ctx context.Context, tx pgx.Tx, r *http.Request) (int, any, error)

func list(ctx context.Context, tx pgx.Tx, _ *http.Request) (int, any, error) {
	var bodies []string
	err := tx.QueryRow(ctx, "SELECT coalesce(array_agg(body ORDER BY id), '{}') FROM records").Scan(&bodies)
	return http.StatusOK, bodies, err
}

func add(ctx context.Context, tx pgx.Tx, r *http.Request) (int, any, error) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		_, err = tx.Exec(ctx, "INSERT INTO records (body) VALUES ($1)", string(body))
	}
	return http.StatusCreated, "added", err
}

func pass(context.Context, pgx.Tx, *http.Request) (int, any, error) {
	return http.StatusOK, "valid", nil
}

// The request's token, or nil; and the client's address, which may be any text.
func credentials(r *http.Request) (token *string, addr string) {
	if found := bearer.FindStringSubmatch(r.Header.Get("Authorization")); found != nil {
		token = &found[1]
	}
	if told := r.Header.Values(os.Getenv("CLIENT_ADDR_HEADER")); len(told) > 0 {
		return token, strings.ToValidUTF8(strings.Join(told, ","), "?")
	}
	return token, r.RemoteAddr
}

// Answers a request in one transaction, which is the key's. Sends nothing if it returns an error.
func serve(w http.ResponseWriter, r *http.Request, scope string, act action) error {
	ctx := r.Context()
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.Background()) // does nothing after COMMIT

	var valid bool
	var status int
	var headers map[string]string
	var body []byte
	token, addr := credentials(r)
	if err := tx.QueryRow(ctx, authenticate, token, scope, addr).Scan(&valid, &status, &headers, &body); err != nil {
		return err
	}
	if valid {
		var answer any
		if status, answer, err = act(ctx, tx, r); err != nil {
			return err
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		headers["Content-Type"] = "application/json"
		body, _ = json.Marshal(answer)
	}
	send(w, status, headers, body)
	return nil
}

func handle(w http.ResponseWriter, r *http.Request, scope string, act action) {
	if r.ContentLength > bodyMax {
		w.Header().Set("Connection", "close") // else net/http reads the body
		problem(w, http.StatusRequestEntityTooLarge, "The body is too long.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, bodyMax)
	var tooLarge *http.MaxBytesError
	var refused *pgconn.PgError
	switch err := serve(w, r, scope, act); {
	case err == nil:
	case errors.As(err, &tooLarge):
		problem(w, http.StatusRequestEntityTooLarge, "The body is too long.")
	case errors.As(err, &refused) && !down.MatchString(refused.Code):
		log.Print(refused.Code)
		problem(w, http.StatusInternalServerError, "The request failed.")
	default:
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, "The database cannot be reached now.")
	}
}

func problem(w http.ResponseWriter, status int, detail string) {
	body, _ := json.Marshal(map[string]any{"type": "about:blank", "status": status, "title": http.StatusText(status), "detail": detail})
	send(w, status, map[string]string{"Content-Type": "application/problem+json"}, body)
}

func send(w http.ResponseWriter, status int, headers map[string]string, body []byte) {
	for name, value := range headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(status)
	w.Write(body)
}

func main() {
	log.SetFlags(0)
	config, err := pgxpool.ParseConfig("") // PGHOST, PGUSER...
	if err != nil {
		log.Fatal(err)
	}
	config.LazyConnect = true // start without the database, too
	if pool, err = pgxpool.ConnectConfig(context.Background(), config); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/records", func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
			handle(w, r, "records:read", list)
		case http.MethodPost:
			handle(w, r, "records:write", add)
		default:
			problem(w, http.StatusMethodNotAllowed, "Only GET and POST are known here.")
		}
	})
	http.HandleFunc("/auth", func(w http.ResponseWriter, r *http.Request) {
		handle(w, r, r.URL.Query().Get("scope"), pass)
	})
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
}
