/*
 * pepper.c
 *		Fuzzes the pepper file's parser; its functions are static, so the file
 *		is included.
 */
#include "server.h"

#include "../../src/token/pepper.c"

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char	   *contents;

	if (size > FILE_MAX_LEN)
		return 0;
	contents = malloc(size + 1);
	memcpy(contents, data, size);
	contents[size] = '\0';
	memset(peppers, 0, sizeof(peppers));
	pepper_count = 0;
	server_error_expected = true;
	if (sigsetjmp(server_error, 0) == 0)
	{
		parse_file(contents);
		HOLDS(pepper_count > 0);
	}
	server_error_expected = false;
	free(contents);

	HOLDS(pepper_count <= PEPPERS_MAX);
	for (int i = 0; i < pepper_count; i++)
	{
		HOLDS(peppers[i].id >= 1 && peppers[i].id <= PEPPER_ID_MAX);
		HOLDS(i == 0 || peppers[i - 1].id < peppers[i].id);
		HOLDS(peppers[i].len >= PEPPER_MIN_LEN && peppers[i].len <= PEPPER_MAX_LEN);
	}
	return 0;
}
