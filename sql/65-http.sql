-- For servers that speak HTTP: a client's address, and the response to a verdict.

CREATE FUNCTION rk_apikeys.client_addr(header text) RETURNS inet
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_client_addr';
COMMENT ON FUNCTION rk_apikeys.client_addr(text) IS
  'The address that the text of a header names, as a host. Drops blanks around it, a port, brackets and a zone. Returns an IPv4-mapped address as IPv4. NULL for anything else, a list of addresses too. Never raises an error.';

-- A scope goes into a header only if it has no character that ends the value.
CREATE FUNCTION rk_apikeys.http_response(verdict rk_apikeys.verdict, scope text DEFAULT NULL,
    OUT status integer, OUT headers jsonb, OUT body jsonb) RETURNS record
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT r.status,
      jsonb_strip_nulls(jsonb_build_object(
        'Content-Type', CASE WHEN r.status <> 200 THEN 'application/problem+json' END,
        'Cache-Control', CASE WHEN r.status <> 200 THEN 'no-store' END,
        'WWW-Authenticate', CASE
          WHEN r.status = 401 THEN 'Bearer' || CASE WHEN r.code IS NULL THEN '' ELSE ' error="invalid_token"' END
          WHEN r.code = 'scope_missing' THEN 'Bearer error="insufficient_scope"'
            || coalesce(', scope="' || substring(http_response.scope FROM '^[\x21\x23-\x5b\x5d-\x7e ]+$') || '"', '') END,
        'Retry-After', CASE WHEN r.status IN (429, 503) THEN r.wait::text END,
        'RateLimit-Policy', CASE WHEN r.limit_units IS NOT NULL THEN
          format('"%s";q=%s', r.limit_name, r.limit_units) END,
        'RateLimit', CASE WHEN r.limit_units IS NOT NULL THEN
          format('"%s";r=%s', r.limit_name, r.limit_remaining)
            || CASE WHEN r.status = 429 THEN ';t=' || r.wait ELSE '' END END)),
      CASE WHEN r.status <> 200 THEN jsonb_strip_nulls(jsonb_build_object(
        'type', 'about:blank', 'status', r.status, 'code', r.code,
        'title', CASE r.status WHEN 401 THEN 'Unauthorized' WHEN 403 THEN 'Forbidden'
          WHEN 429 THEN 'Too Many Requests' ELSE 'Service Unavailable' END,
        'detail', CASE r.status
          WHEN 401 THEN CASE WHEN r.code IS NULL THEN 'The request has no API key.' ELSE 'The API key is not accepted.' END
          WHEN 403 THEN CASE r.code WHEN 'scope_missing' THEN 'The API key lacks a scope that the request needs.'
            ELSE 'The API key is not accepted from this address.' END
          WHEN 429 THEN 'The API key has used up its limit.'
          ELSE 'The limit of the API key cannot be checked now.' END)) END
    FROM (SELECT verdict.code, verdict.limit_name, verdict.limit_units, verdict.limit_remaining,
        CASE WHEN verdict.valid THEN 200
          WHEN verdict.code IN ('scope_missing', 'address_denied') THEN 403
          WHEN verdict.code = 'rate_limited' THEN 429
          WHEN verdict.code = 'limiter_unavailable' THEN 503
          ELSE 401 END AS status,
        -- Whole seconds, rounded up.
        (coalesce(verdict.retry_after_ms, 1000) + 999::bigint) / 1000 AS wait) r;
END;
COMMENT ON FUNCTION rk_apikeys.http_response(rk_apikeys.verdict, text) IS
  'The response of an HTTP server to a verdict. scope: as it was given to verify_key. status: 200, 401, 403, 429 or 503. headers: an object of WWW-Authenticate (RFC 6750), Retry-After, RateLimit and RateLimit-Policy. body: problem details (RFC 9457); NULL with 200. Without a verdict, that is for a request without a token, the status is 401.';
