// examples/jdbc/Server.java: GET and POST /records over HTTP for whoever has an API key, with JDBC; see ../records.sql.
//
//   PGHOST=127.0.0.1 PGUSER=records_api PGDATABASE=... PORT=8080 java -cp /usr/share/java/postgresql.jar Server.java
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Map;
import java.util.concurrent.Executors;
import org.postgresql.ds.PGSimpleDataSource;
import org.postgresql.util.PSQLException;

public class Server {
    static final int BODY_MAX = 65536; // whoever sends more has not authenticated yet

    record Answer(int status, String json) {}

    interface Action {
        Answer run(Connection connection) throws SQLException, IOException;
    }

    static final Map<String, Integer> STATUS =
        Map.of("scope_missing", 403, "address_denied", 403, "rate_limited", 429, "limiter_unavailable", 503);
    static final PGSimpleDataSource database = new PGSimpleDataSource(); // in a product: a pool

    /** Runs the action in a transaction that is the key's of the request; commits, or rolls back on an error. */
    static Answer authenticated(HttpExchange http, String scope, Action action) throws SQLException, IOException {
        String header = http.getRequestHeaders().getFirst("Authorization");
        try (Connection connection = database.getConnection()) {
            connection.setAutoCommit(false);
            try (PreparedStatement call = connection.prepareStatement("SELECT rk_apikeys.authenticate(?, ?, ?::inet)")) {
                call.setString(1, header != null && header.startsWith("Bearer ") ? header.substring(7) : null);
                call.setString(2, scope);
                call.setString(3, http.getRemoteAddress().getAddress().getHostAddress());
                call.executeQuery();
                Answer answer = action.run(connection);
                connection.commit();
                return answer;
            } catch (PSQLException error) {
                connection.rollback();
                if (!"28000".equals(error.getSQLState())) throw error;
                return refusal(http, error);
            }
        }
    }

    /** What to answer when the database refuses a key. */
    static Answer refusal(HttpExchange http, PSQLException error) {
        String message = error.getServerErrorMessage().getMessage();
        String code = message.substring(message.lastIndexOf(' ') + 1);
        int status = STATUS.getOrDefault(code, 401);
        if (status == 401) http.getResponseHeaders().set("WWW-Authenticate", "Bearer");
        if (status == 429) {
            long ms = Long.parseLong(error.getServerErrorMessage().getDetail().replaceAll(".*retry_after_ms=", ""));
            http.getResponseHeaders().set("Retry-After", Long.toString((ms + 999) / 1000));
        }
        return new Answer(status, '"' + code + '"');
    }

    static Answer list(Connection connection) throws SQLException {
        try (Statement query = connection.createStatement();
                var rows = query.executeQuery("SELECT coalesce(json_agg(body ORDER BY id), '[]')::text FROM records")) {
            rows.next();
            return new Answer(200, rows.getString(1));
        }
    }

    static Answer add(Connection connection, String body) throws SQLException {
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO records (body) VALUES (?)")) {
            insert.setString(1, body);
            insert.executeUpdate();
            return new Answer(201, "\"added\"");
        }
    }

    static Answer post(HttpExchange http) throws IOException, SQLException {
        String announced = http.getRequestHeaders().getFirst("Content-Length");
        byte[] body = announced != null && Long.parseLong(announced) > BODY_MAX
            ? null : http.getRequestBody().readNBytes(BODY_MAX + 1);
        if (body == null || body.length > BODY_MAX) {
            http.getResponseHeaders().set("Connection", "close");
            return new Answer(413, "\"too long\"");
        }
        return authenticated(http, "records:write", connection -> add(connection, new String(body, StandardCharsets.UTF_8)));
    }

    static void handle(HttpExchange http) throws IOException {
        Answer answer;
        try {
            answer = switch (http.getRequestMethod()) {
                case "GET" -> authenticated(http, "records:read", Server::list);
                case "POST" -> post(http);
                default -> new Answer(405, "\"method\"");
            };
        } catch (SQLException error) {
            System.err.println(error.getSQLState());
            answer = new Answer(500, "\"error\"");
        }
        byte[] bytes = answer.json().getBytes(StandardCharsets.UTF_8);
        http.getResponseHeaders().set("Content-Type", "application/json");
        http.sendResponseHeaders(answer.status(), bytes.length);
        http.getResponseBody().write(bytes);
        http.close();
    }

    static String env(String name, String otherwise) {
        return System.getenv().getOrDefault(name, otherwise);
    }

    public static void main(String[] arguments) throws IOException {
        database.setServerNames(new String[] {env("PGHOST", "127.0.0.1")});
        database.setPortNumbers(new int[] {Integer.parseInt(env("PGPORT", "5432"))});
        database.setUser(env("PGUSER", "records_api"));
        database.setDatabaseName(env("PGDATABASE", "postgres"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(env("PORT", "8080"))), 0);
        server.createContext("/records", Server::handle);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
