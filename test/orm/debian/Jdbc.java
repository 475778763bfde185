// test/orm/debian/Jdbc.java: JDBC. bridge.py asks.
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.io.*;
import java.sql.*;
import java.time.*;
import java.util.*;
import java.util.logging.*;
import org.postgresql.util.PGInterval;
import org.postgresql.util.PGobject;
import org.postgresql.util.PSQLException;

public class Jdbc {
    // doc: jdbc
    // What a column is in Java.
    static Object read(ResultSet rows, int i) throws SQLException {
        return switch (rows.getMetaData().getColumnTypeName(i)) {
            case "timestamptz" -> rows.getObject(i, OffsetDateTime.class);
            case "_text", "_cidr" -> rows.getArray(i) == null ? null : texts(rows.getArray(i));
            default -> rows.getObject(i); // interval: PGInterval; jsonb: PGobject
        };
    }

    static List<String> texts(Array array) throws SQLException {
        return Arrays.stream((Object[]) array.getArray()).map(Object::toString).toList();
    }

    // What is sent for a value: of a type that the driver leaves to the server, where it is a text.
    static Object write(Connection db, Object value) throws SQLException {
        if (value instanceof List<?> list) return db.createArrayOf("text", list.toArray());
        if (value instanceof Map<?, ?> map) value = JSON.toJson(map);
        if (!(value instanceof String text)) return value;
        PGobject any = new PGobject();
        any.setType("unknown");
        any.setValue(text);
        return any;
    }

    static List<Map<String, Object>> all(Connection db, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) statement.setObject(i + 1, write(db, values[i]));
            List<Map<String, Object>> list = new ArrayList<>();
            if (!statement.execute()) return list;
            ResultSet rows = statement.getResultSet();
            while (rows.next()) {
                Map<String, Object> row = new LinkedHashMap<>();
                for (int i = 1; i <= rows.getMetaData().getColumnCount(); i++) row.put(rows.getMetaData().getColumnName(i), read(rows, i));
                list.add(row);
            }
            return list;
        }
    }

    // A text[] is sent for a cidr[] too.
    static String place(String column) {
        return column.equals("allowed_cidrs") ? "?::cidr[]" : "?";
    }

    // One statement for all objects, which have the same columns.
    static List<Map<String, Object>> create(Connection db, List<Map<String, Object>> objects) throws SQLException {
        Set<String> names = objects.get(0).keySet();
        String row = "(" + String.join(", ", names.stream().map(Jdbc::place).toList()) + ")";
        return all(db, "INSERT INTO rk_apikeys.orm_keys (" + String.join(", ", names) + ") VALUES "
            + String.join(", ", Collections.nCopies(objects.size(), row)) + " RETURNING *",
            objects.stream().flatMap(object -> object.values().stream()).toArray());
    }

    static void update(Connection db, String id, Map<String, Object> values) throws SQLException {
        List<Object> all = new ArrayList<>(values.values());
        all.add(id);
        all(db, "UPDATE rk_apikeys.orm_keys SET "
            + String.join(", ", values.keySet().stream().map(name -> name + " = " + place(name)).toList()) + " WHERE key_id = ?", all.toArray());
    }
    // doc: end

    // doc: jdbc_request
    static List<Object> enter(Connection db, String token) throws SQLException {
        db.setAutoCommit(false);
        try {
            Map<String, Object> verdict = all(db, "SELECT * FROM rk_apikeys.authenticate(?, raise => false)", token).get(0);
            List<Map<String, Object>> records = (Boolean) verdict.get("valid") ? all(db, "SELECT body FROM records ORDER BY id") : List.of();
            db.commit();
            return List.of(verdict, records.stream().map(record -> record.get("body")).toList());
        } finally {
            db.rollback();
            db.setAutoCommit(true);
        }
    }
    // doc: end

    static final Gson JSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();
    static final StringBuilder LOG = new StringBuilder();
    static Connection db;

    // A value as bridge.py reads it.
    static Object told(Object value) throws SQLException {
        if (value instanceof OffsetDateTime time) return Map.of("$time", time.toInstant().toString());
        if (value instanceof PGInterval span)
            return Map.of("$interval", span.getDays() * 86400.0 + span.getHours() * 3600 + span.getMinutes() * 60 + span.getSeconds());
        if (value instanceof PGobject object) return JSON.fromJson(object.getValue(), Object.class);
        if (value instanceof List<?> list) {
            List<Object> result = new ArrayList<>();
            for (Object one : list) result.add(told(one));
            return result;
        }
        if (value instanceof Map<?, ?> map) {
            Map<Object, Object> result = new LinkedHashMap<>();
            for (Map.Entry<?, ?> entry : map.entrySet()) result.put(entry.getKey(), told(entry.getValue()));
            return result;
        }
        return value;
    }

    @SuppressWarnings("unchecked")
    static Object answer(List<Object> v) throws SQLException {
        switch ((String) v.get(0)) {
            case "open":
                Map<String, Object> where = (Map<String, Object>) v.get(1);
                if (where.get("log") != null) logStatements();
                // PgBouncer: no prepared statements on the server
                db = DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + where.get("port") + "/" + where.get("dbname")
                    + "?user=" + where.get("user") + "&prepareThreshold=0");
                return null;
            case "create": return create(db, List.of((Map<String, Object>) v.get(1))).get(0);
            case "create_many": return create(db, (List<Map<String, Object>>) v.get(1));
            case "find": return all(db, "SELECT * FROM rk_apikeys.orm_keys WHERE name ILIKE ? ORDER BY " + v.get(2) + " LIMIT ? OFFSET ?",
                "%" + v.get(1) + "%", number(v.get(3)), number(v.get(4)));
            case "read": return all(db, "SELECT * FROM rk_apikeys.orm_keys WHERE key_id = ?", v.get(1)).get(0);
            case "save", "write": update(db, (String) v.get(1), (Map<String, Object>) v.get(2)); return null;
            case "remove": return all(db, "DELETE FROM rk_apikeys.orm_keys WHERE key_id = ? RETURNING key_id", v.get(1));
            case "rows": return all(db, ((String) v.get(1)).replace("%s", "?"), ((List<Object>) v.get(2)).toArray());
            case "verify": return all(db, "SELECT * FROM rk_apikeys.verify_key(?, ?, cost => ?)", v.get(1), v.get(2), number(v.get(3))).get(0);
            case "enter": return enter(db, (String) v.get(1));
            default:
                db.setAutoCommit(false);
                try { return all(db, "SELECT * FROM rk_apikeys.authenticate(?)", v.get(1)); }
                finally { db.rollback(); db.setAutoCommit(true); }
        }
    }

    static Object number(Object value) { return ((Number) value).intValue(); }

    // The driver's own log, at its finest.
    static void logStatements() {
        Logger logger = Logger.getLogger("org.postgresql");
        Handler handler = new Handler() {
            public void publish(LogRecord record) { LOG.append(new SimpleFormatter().formatMessage(record)).append('\n'); }
            public void flush() {}
            public void close() {}
        };
        handler.setLevel(Level.ALL);
        logger.setLevel(Level.ALL);
        logger.setUseParentHandlers(false);
        logger.addHandler(handler);
        keep = logger;
    }
    static Logger keep;

    public static void main(String[] args) throws Exception {
        if (args.length > 0) {
            System.out.println(org.postgresql.util.DriverInfo.DRIVER_VERSION);
            return;
        }
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        for (String line; (line = in.readLine()) != null; ) {
            Map<String, Object> answer = new LinkedHashMap<>();
            try {
                answer.put("value", told(answer(whole(JSON.fromJson(line, List.class)))));
            } catch (SQLException error) {
                answer.put("error", String.valueOf(error.getMessage()));
                answer.put("state", error.getSQLState());
                answer.put("object", error instanceof PSQLException own ? error + " " + own.getServerErrorMessage() : error.toString());
            } catch (Exception error) {
                answer.put("error", error.toString());
            }
            answer.put("log", LOG.toString());
            LOG.setLength(0);
            out.println(JSON.toJson(answer));
        }
    }

    // JSON has one kind of number.
    @SuppressWarnings("unchecked")
    static <T> T whole(T value) {
        if (value instanceof Double number && number == Math.rint(number)) return (T) (Object) number.intValue();
        if (value instanceof List<?> list) return (T) list.stream().map(Jdbc::whole).collect(ArrayList::new, ArrayList::add, ArrayList::addAll);
        if (value instanceof Map<?, ?> map) {
            Map<Object, Object> result = new LinkedHashMap<>();
            map.forEach((name, one) -> result.put(name, whole(one)));
            return (T) result;
        }
        return value;
    }
}
