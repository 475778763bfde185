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
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.concurrent.Executors;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.postgresql.ds.PGSimpleDataSource;

public class Server {
    static final int BODY_MAX = 65536;
    static final Pattern BEARER = Pattern.compile("bearer +([!-~][ -~]*)", Pattern.CASE_INSENSITIVE);
    // The header in which a proxy of your own tells the client's address. Without such a proxy leave it unset: clients can send any header.
    static final String ADDR_HEADER = env("CLIENT_ADDR_HEADER", "");
    // The headers come as one array: name, value, name, value...
    static final String AUTHENTICATE = """
        SELECT v.valid, r.status, r.body,
          ARRAY(SELECT unnest(ARRAY[h.key, h.value]) FROM jsonb_each_text(r.headers) h) AS headers
        FROM (SELECT ?, ?, ?) q (token, scope, address),
          rk_apikeys.authenticate(q.token, q.scope, rk_apikeys.client_addr(q.address), raise => false) v,
          rk_apikeys.http_response(CASE WHEN q.token IS NOT NULL THEN v END, q.scope) r""";
    static final PGSimpleDataSource database = new PGSimpleDataSource(); // in a product: of a pool, such as HikariCP

    record Answer(int status, String json) {}

    interface Action {
        Answer run(Connection connection) throws SQLException, IOException;
    }

    /** Runs the action in a transaction that is the key's of the request, or refuses the request. */
    static Answer authenticated(HttpExchange http, String scope, Action action) throws SQLException, IOException {
        String authorization = http.getRequestHeaders().getFirst("Authorization");
        Matcher bearer = BEARER.matcher(authorization == null ? "" : authorization.strip());
        String address = ADDR_HEADER.isEmpty() ? null : http.getRequestHeaders().getFirst(ADDR_HEADER);
        // Closing the connection rolls back what is not committed.
        try (Connection connection = database.getConnection();
                PreparedStatement call = connection.prepareStatement(AUTHENTICATE)) {
            connection.setAutoCommit(false);
            call.setString(1, bearer.matches() ? bearer.group(1) : null);
            call.setString(2, scope);
            call.setString(3, address != null ? address : http.getRemoteAddress().getAddress().getHostAddress());
            ResultSet verdict = call.executeQuery();
            verdict.next();
            Answer answer = new Answer(verdict.getInt("status"), verdict.getString("body"));
            if (verdict.getBoolean("valid")) {
                answer = action.run(connection);
                connection.commit();
            } else {
                connection.rollback();
            }
            String[] headers = (String[]) verdict.getArray("headers").getArray();
            for (int i = 0; i < headers.length; i += 2) http.getResponseHeaders().set(headers[i], headers[i + 1]);
            return answer;
        }
    }

    static Answer list(Connection connection) throws SQLException {
        try (Statement query = connection.createStatement();
                ResultSet rows = query.executeQuery("SELECT coalesce(json_agg(body ORDER BY id), '[]') FROM records")) {
            rows.next();
            return new Answer(200, rows.getString(1));
        }
    }

    static Answer add(Connection connection, HttpExchange http) throws SQLException, IOException {
        byte[] body = http.getRequestBody().readNBytes(BODY_MAX + 1); // it may have announced no length
        if (body.length > BODY_MAX) return tooLong(http);
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO records (body) VALUES (?)")) {
            insert.setString(1, new String(body, StandardCharsets.UTF_8));
            insert.executeUpdate();
            return new Answer(201, "\"added\"");
        }
    }

    static Answer tooLong(HttpExchange http) {
        http.getResponseHeaders().set("Connection", "close");
        return new Answer(413, "\"too long\"");
    }

    static Answer unavailable(HttpExchange http) {
        http.getResponseHeaders().set("Content-Type", "application/problem+json");
        http.getResponseHeaders().set("Retry-After", "1");
        return new Answer(503, """
            {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "The database cannot be reached now."}""");
    }

    static Answer answer(HttpExchange http) throws IOException {
        String announced = http.getRequestHeaders().getFirst("Content-Length");
        if (announced != null && Long.parseLong(announced) > BODY_MAX) return tooLong(http);
        try {
            return switch (http.getRequestMethod()) {
                case "GET" -> authenticated(http, "records:read", Server::list);
                case "POST" -> authenticated(http, "records:write", connection -> add(connection, http));
                default -> new Answer(405, "\"method\"");
            };
        } catch (SQLException error) {
            if (error.getSQLState() != null && error.getSQLState().matches("08...|57P..")) return unavailable(http);
            System.err.println(error.getSQLState());
            return new Answer(500, "\"error\"");
        }
    }

    static void handle(HttpExchange http) throws IOException {
        http.getResponseHeaders().set("Content-Type", "application/json");
        Answer answer = answer(http);
        byte[] bytes = answer.json().getBytes(StandardCharsets.UTF_8);
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
        database.setConnectTimeout(2);
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(env("PORT", "8080"))), 0);
        server.createContext("/records", Server::handle);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
