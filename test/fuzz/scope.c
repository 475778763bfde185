/*
 * scope.c
 *		Fuzzes grant_scope() of src/base/grant.c: lines, the first of them
 *		the scope that is wanted, the others those that the key has.
 */
#include "server.h"

#include "catalog/pg_type_d.h"
#include "utils/array.h"

#include "compat.h"
#include "base/grant.h"

#define SCOPES_MAX 64

static Datum elements[SCOPES_MAX];
static bool nulls[SCOPES_MAX];
static int	count;

/* The array is what the fuzzer has taken apart. */
void
deconstruct_array(ArrayType *array, Oid elmtype, int elmlen, bool elmbyval,
				  char elmalign, Datum **elemsp, bool **nullsp, int *nelemsp)
{
	*elemsp = elements;
	*nullsp = nulls;
	*nelemsp = count;
}

/* A text without a byte to spare, with a short header as those in a row. */
static text *
make_text(const uint8 *data, size_t len)
{
	bool		is_short = len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX && len % 2 == 0;
	text	   *result = malloc(len + (is_short ? VARHDRSZ_SHORT : VARHDRSZ));

	if (is_short)
		SET_VARSIZE_SHORT(result, len + VARHDRSZ_SHORT);
	else
		SET_VARSIZE(result, len + VARHDRSZ);
	memcpy(VARDATA_ANY(result), data, len);
	return result;
}

/* The rule of the reference, said anew. */
static bool
grants(const char *have, size_t have_len, const char *want, size_t want_len)
{
	if (have_len == want_len && memcmp(have, want, want_len) == 0)
		return true;
	if (have_len == 1)
		return have[0] == '*';
	for (size_t i = 0; i + 1 < want_len; i++)
		if (want[i] == ':' && have_len == i + 2 && have[i + 1] == '*' &&
			memcmp(have, want, i + 1) == 0)
			return true;
	return false;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	const uint8 *end = data + size;
	text	   *wanted = NULL;
	bool		expected = false;

	count = 0;
	while (data < end && count < SCOPES_MAX)
	{
		const uint8 *line_end = memchr(data, '\n', end - data);
		size_t		len = (line_end ? line_end : end) - data;
		text	   *scope = make_text(data, len);

		if (wanted == NULL)
			wanted = scope;
		else
		{
			nulls[count] = len == 1 && *data == 0;
			elements[count++] = PointerGetDatum(scope);
		}
		data += len + 1;
	}
	if (wanted == NULL)
		return 0;
	for (int i = 0; i < count; i++)
		if (!nulls[i] &&
			grants(VARDATA_ANY(elements[i]), VARSIZE_ANY_EXHDR(elements[i]),
				   VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(wanted)))
			expected = true;
	HOLDS(grant_scope((ArrayType *) elements, wanted) == expected);
	free(wanted);
	for (int i = 0; i < count; i++)
		free(DatumGetPointer(elements[i]));
	return 0;
}
